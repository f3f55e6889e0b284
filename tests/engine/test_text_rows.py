"""Attention of the text behind the image: the right rows, of each sample, up to the question's end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from foveate import BTP, FastV
from foveate.engine import attach
from foveate.engine import attention_rows as rows_of_attention
from foveate.engine.attention_rows import row_logits
from foveate.pruners import Pruner
from tests.models.build import ATTENTIVE, IMAGE, build, inputs


@dataclass(frozen=True, kw_only=True)
class Listener(Pruner):
    """Asks for the attention of every text row at two stages; keeps everything."""

    name: ClassVar[str] = "listener"
    paper: ClassVar[str] = "test"
    summary: ClassVar[str] = "test"
    seen: list = field(default_factory=list)
    summed: bool = False

    def sums_rows(self, layer):
        return self.summed

    def layers(self, depth):
        return (1, 3)

    def attention_rows(self, layer, rows):
        return rows.text

    def select(self, tokens):
        self.seen.append(tokens)
        return tokens.valid

    def notes(self, depth):
        return (f"a note about {depth} layers",)


@pytest.mark.parametrize("family", ATTENTIVE)
@pytest.mark.parametrize("layout", ["one image", "two images", "ragged"])
@pytest.mark.parametrize(("answer", "summed"), [(0, False), (2, False), (2, True)])
def test_sum_over_text_rows(family, layout, answer, summed, monkeypatch):
    monkeypatch.setattr(rows_of_attention, "ROWS", 2)
    batch = inputs(family, layout)
    length = batch["input_ids"].shape[1]
    options = {}
    if answer:  # scored with labels: the answer's rows do not count
        options["labels"] = batch["input_ids"].clone()
        options["labels"][:, : length - answer] = -100
    listener = Listener(summed=summed)
    with torch.no_grad():
        whole = build(family, "eager")(**batch, output_attentions=True).attentions
        with attach(build(family), listener, _always_gather=True) as pruned:
            pruned.model(**batch, **options)
    assert pruned.report.notes == ["a note about 6 layers"]
    visual = batch["input_ids"] == IMAGE
    behind = (visual.cumsum(-1) > 0) & ~visual & batch["attention_mask"].bool()
    behind[:, length - answer :] = False
    for tokens, layer in zip(listener.seen, (0, 2), strict=True):
        assert (tokens.attention.shape[2] == 1) == summed
        for row in range(len(visual)):
            expected = whole[layer][row][:, behind[row]][..., visual[row]].sum(1)
            ours = tokens.attention[row].sum(1)[:, : int(visual[row].sum())]
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_summing_holds_a_few_rows_at_a_time(monkeypatch):
    """BTP's mean over 6,000 text tokens took 1.3 GiB."""
    made = []
    monkeypatch.setattr(
        rows_of_attention, "row_logits", lambda *given: made.append(row_logits(*given)) or made[-1].clone()
    )
    query, key = torch.randn(1, 4, 400, 8), torch.randn(1, 2, 400, 8)
    rows = torch.arange(100, 400)[None]
    total = rows_of_attention.summed_rows(query, key, None, {}, rows)
    assert max(one.shape[2] for one in made) <= rows_of_attention.ROWS
    whole = rows_of_attention.attention_rows(query, key, None, {}, rows)
    torch.testing.assert_close(total, whole.sum(2, keepdim=True))
    assert BTP(query="mean_text").sums_rows(3)
    assert not BTP().sums_rows(3)
    assert not FastV().sums_rows(1)  # what a method has that does not say
