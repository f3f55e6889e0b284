"""Training the shipped weights further, on several images, on a minute recipe; and what ships of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foveate import tiny
from foveate.measure.eval.answers import answer_batch
from foveate.measure.eval.suites import is_correct, load_suite
from foveate.measure.loading import load_model
from foveate.tiny.model import MANY, WEIGHTS, Shape, build, merge
from foveate.tiny.training import packing
from foveate.tiny.training.many import ManyRecipe, changes, open_layers, train_many
from foveate.tiny.training.packing import LAYOUT, attend, places
from foveate.tiny.training.run import Run
from foveate.tiny.training.several import KINDS, packed
from foveate.tiny.vocabulary import WORD_ID

MINUTE = ManyRecipe(
    drawn=(("clip", 2), ("large", 2), ("pair", 1), ("single", 2)),
    first_layer=9,
    rate=0.5,
    steps=3,
    decay_from=1,
    whole_from=2,
    parts=(("clip", 1, 96, 1), ("large", 1, 64, 1)),
    whole=(("pair", 1, 512, 1), ("single", 1, 256, 1)),
    check_every=3,
    check=(("large", 1),),
)
needs_weights = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").is_file(), reason="the embedded model has no weights here"
)


class Stopped(Exception):
    """Stands for a killed process."""


@needs_weights
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, monkeypatch):
    whole = train_many(tmp_path / "whole", MINUTE)
    save = Run.save

    def saving(self, where, done, *rest):
        save(self, where, done, *rest)
        if done == 1:
            raise Stopped

    monkeypatch.setattr(Run, "save", saving)
    with pytest.raises(Stopped):
        train_many(tmp_path / "parts", MINUTE, checkpoint_seconds=-1.0)
    monkeypatch.setattr(Run, "save", save)
    parts = train_many(tmp_path / "parts", MINUTE, resume=True)
    assert whole.read_bytes() == parts.read_bytes()
    stored = load_file(whole)
    assert {int(name.split(".")[1]) for name in stored if name.startswith("layers")} == {9, 10, 11}
    assert all(stored[name].min() > 1e-6 for name in stored if name.endswith(".scale")), "every weight is trained"
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["start", "many"]
    assert {"loss", "train_clip", "train_pair", "large", "large_tasks"} <= set(lines[-1])
    with pytest.raises(FileExistsError, match="resume"):
        train_many(tmp_path / "whole", MINUTE)
    with pytest.raises(ValueError, match="another recipe"):
        train_many(tmp_path / "whole", replace(MINUTE, rate=0.1), resume=True)


def test_stored_changes_give_the_model_that_was_trained():
    torch.manual_seed(0)
    shape = Shape(hidden=64, mlp=96, heads=2, groups=1, layers=3, vision_hidden=32, vision_layers=1, vision_heads=1)
    model, before, other = (build(shape).eval() for _ in range(3))
    for one in (before, other):
        one.load_state_dict(model.state_dict())
    trained = open_layers(model, 1)
    assert [name for name in trained if not name.startswith(("layers.1.", "layers.2."))] == []
    assert len(trained) == 14
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        f"model.language_model.{name}.weight" for name in trained
    }
    with torch.no_grad():
        for weight in trained.values():
            weight += 0.3 * torch.randn_like(weight)
    stored = changes(model, trained, before)
    merge(other, stored)
    for name, weight in trained.items():
        found, old = (one.model.language_model.get_submodule(name).weight for one in (other, before))
        assert (found - old).abs().max() > 0.3
        assert (found - weight).abs().max() <= 0.51 * stored[f"{name}.scale"].max(), "rounded to a sixteenth"
    words = other.model.language_model.embed_tokens.weight
    row = model.model.language_model.embed_tokens.weight[WORD_ID["enters"]]
    assert torch.allclose(words[WORD_ID["enters"]], row, atol=1e-3)
    assert not torch.allclose(before.model.language_model.embed_tokens.weight[WORD_ID["enters"]], row, atol=0.05)
    assert other.lm_head.weight is words


def test_fused_attention_equals_the_plain_one(monkeypatch):
    torch.manual_seed(1)
    layout, front = ((2, 4), (1, 6)), 40
    q, k, v = (torch.randn(2, heads, front + 14, 8) for heads in (6, 2, 2))
    plain = attend(q, k, v, front, layout, None)
    monkeypatch.setattr(packing, "_FUSED", 10)
    assert torch.allclose(attend(q, k, v, front, layout, None), plain, atol=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_questions_of_a_kind_fill_slots_and_are_about_what_is_shown(kind):
    what, rng = KINDS[kind], np.random.default_rng(8)
    things = [what.make(rng) for _ in range(3)]
    for visual in (what.visual, 160):
        out = packed(rng, kind, things, visual)
        assert out.keep.shape == (3, visual)
        assert len(out.asked) > 9
        for b, first, last, question in out.asked:
            assert (out.targets[b, first:last] >= 0).all()
            assert places(what.layout)[first] > 0
            shown = np.zeros(what.visual, dtype=bool)
            shown[out.keep[b]] = True
            held = tiny.evidence_tokens(question, 16, 16 * what.images)
            assert shown[held].all(), "its evidence is shown"
    assert KINDS["single"].layout is LAYOUT


@pytest.mark.skipif(not MANY.is_file(), reason="the embedded model has no changes here")
@pytest.mark.parametrize(
    ("suite", "visual", "known"),
    [("scenes-video", 2048, ("place", "read")), ("scenes-large", 1024, ("colour", "exist", "find", "size"))],
)
def test_the_embedded_model_answers_what_it_has_learnt(suite, visual, known):
    examples = [example for example in load_suite(suite, 30, 6) if example.task in known]
    loaded = load_model("tiny-many", "cpu", "auto")
    answers = [one for example in examples for one in answer_batch(loaded, [example])]
    assert {answer.visual for answer in answers} == {visual}
    right = sum(is_correct(one.text, example.answer) for one, example in zip(answers, examples, strict=True))
    assert right >= 0.6 * len(examples)
