"""Two scenes, and a question that only one of them can answer."""

from __future__ import annotations

import pytest
import torch

from foveate import tiny
from foveate.measure.eval.answers import answer_batch
from foveate.measure.eval.suites import is_correct, load_suite, suite_fingerprint
from foveate.measure.loading import load_model
from foveate.tiny.model import WEIGHTS
from foveate.tiny.pairs import could_mean


def test_only_one_scene_can_be_meant():
    asked = list(tiny.held_out_pairs(12, seed=4))
    assert [question.task for _, _, question in asked] == list(tiny.PAIR_TASKS) * 2
    for scene, other, question in asked:
        assert could_mean(question, scene, scene)
        for thing in other.objects:  # what is named, read from the question's words
            assert f"{thing.colour} {thing.kind}" not in question.text
            assert not thing.text or f"sign with {thing.text}?" not in question.text
    assert any(could_mean(asked[0][2], asked[0][0], other) for other, _, _ in tiny.held_out_pairs(12, seed=5))


def test_the_suite_asks_about_the_first_and_the_second():
    examples = load_suite("scenes-two", 12, 4)
    for example, (scene, other, question) in zip(examples, tiny.held_out_pairs(12, seed=4), strict=True):
        place = int(example.index >= 6)
        assert example.images[place].tobytes() == scene.pil().tobytes()
        assert example.images[1 - place].tobytes() == other.pil().tobytes()
        evidence = torch.as_tensor(tiny.evidence_tokens(question)).nonzero().flatten()
        assert torch.equal(example.evidence - 256 * place, evidence)
    assert suite_fingerprint(examples) == suite_fingerprint(load_suite("scenes-two", 12, 4))
    assert suite_fingerprint(examples) != suite_fingerprint(load_suite("scenes-two", 12, 3))


@pytest.mark.skipif(not (WEIGHTS / "model.safetensors").is_file(), reason="the embedded model has no weights here")
def test_the_embedded_model_can_answer_it():
    examples = load_suite("scenes-two", 12, 4)
    answers = answer_batch(load_model("tiny", "cpu", "auto"), examples)
    assert {answer.visual for answer in answers} == {512}
    assert sum(is_correct(one.text, example.answer) for one, example in zip(answers, examples, strict=True)) >= 10
