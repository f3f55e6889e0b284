"""Drawing tokens and writing text, row by row."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from foveate.serve.sampling import Sampling, draw
from foveate.serve.text import AnswerText

VOCABULARY = 50


def generators(rows):
    return [row.generator() for row in rows]


def test_a_row_draws_what_it_draws_alone():
    torch.manual_seed(0)
    scores = 3 * torch.randn(5, VOCABULARY)
    rows = [
        Sampling(0.0),
        Sampling(1.0, seed=1),
        Sampling(1.5, 0.9, seed=2),
        Sampling(0.7, 1.0, 5, 3),
        Sampling(1.0, seed=1),
    ]
    together, alone = generators(rows), generators(rows)
    for _ in range(50):
        found = draw(scores, rows, together)
        for at, row in enumerate(rows):
            assert draw(scores[at : at + 1], [row], [alone[at]]).tolist() == [found[at]]


def test_the_shares_are_those_of_the_softmax():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for row in (Sampling(1.0), Sampling(2.0), Sampling(1.0, 0.8), Sampling(1.0, 1.0, 2)):
        expected = (scores[0] / row.temperature).softmax(-1)
        if row.top_p < 1:
            expected = expected * (expected.cumsum(-1) - expected < row.top_p)
        if row.top_k:
            expected[row.top_k :] = 0
        expected = expected / expected.sum()
        rows = [dataclasses.replace(row, seed=seed) for seed in range(4000)]
        count = torch.bincount(draw(scores.expand(4000, 4), rows, generators(rows)), minlength=4)
        assert torch.allclose(count / 4000, expected, atol=0.03)
        assert not count[expected == 0].any()


def test_what_the_processors_ruled_out_is_never_drawn():
    scores = torch.full((1, VOCABULARY), -torch.inf)
    scores[0, 7] = -3.0
    row = Sampling(2.0, seed=1)
    assert {int(draw(scores, [row], [row.generator()])) for _ in range(20)} == {7}


class Bytes:
    """A tokenizer of bytes."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("stop", [(), ("lich",), ("xy", "🦊!"), ("h f",)])
def test_pieces_make_up_the_text(stop):
    whole = "fröhlich 🦊 finden"
    text, seen = AnswerText(Bytes(), stop), ""
    for byte in whole.encode():
        text.add(byte)
        assert "\ufffd" not in text.text
        assert text.text.startswith(seen)
        seen = text.text[: text.certain]
        if text.stopped:
            break
    text.end()
    places = [whole.find(one) for one in stop if one in whole]
    assert text.text == whole[: min(places)] if places else whole
    assert text.stopped == bool(places)
    assert seen == text.text or not text.stopped


def test_the_beginning_of_a_stop_string_is_held_back():
    text = AnswerText(Bytes(), ("STOP",))
    for byte in b"an ST":
        text.add(byte)
    assert text.text[: text.certain] == "an "
    text.add(ord("A"))
    assert text.certain == len("an STA")
    for byte in b"STOPx":
        text.add(byte)
    assert (text.text, text.stopped) == ("an STA", True)


def test_half_a_character_at_the_end():
    text = AnswerText(Bytes())
    text.add("ö".encode()[0])
    assert text.text == ""
    text.end()
    assert text.text == "\ufffd"


def test_tokens_that_are_out_stand_when_a_batch_is_run_again():
    """In another batch a tie may fall otherwise, and what was sent cannot be taken back."""
    from foveate.serve.batch import _Steps
    from foveate.serve.jobs import Job, Pruned

    sent: list = []
    prompt = type("Prompt", (), {"visual": 0})()
    job = Job(prompt, None, Sampling(0.0), (), 4, None, True, float("inf"), sent.append, tokens=[65, 66], sent=2)
    steps = _Steps([job], Bytes(), None, lambda: [Pruned(0, 0)])
    scores = torch.zeros(1, 128)
    scores[0, 67] = 1.0  # what is most likely now
    for _ in range(4):
        steps.draw(scores)
        over = steps.stop()
    assert over == [True]
    assert job.tokens == [65, 66, 67, 67]
    assert [one.text for one in sent] == ["C", "C", "ABCC"]
