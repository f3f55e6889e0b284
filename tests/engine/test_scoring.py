"""An answer that is scored, by labels or by its logits alone, meets the visual tokens that it was generated from."""

from __future__ import annotations

import inspect

import pytest
import torch

from foveate import FastV, GreedyPrune
from foveate.engine import attach
from tests.models.build import build, generate, inputs

STEPS = 5


def scored(model, batch, out, **options):
    more = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
    for name, value in more.items():
        if name.endswith("token_type_ids"):
            more[name] = torch.nn.functional.pad(value, (0, STEPS))
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, STEPS), value=1)
    with torch.no_grad():
        return model(input_ids=out.sequences, attention_mask=mask, **more, **options).logits


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("layout", ["one image", "ragged"])
@pytest.mark.parametrize("pruner", [FastV(keep=0.3), GreedyPrune(keep=0.3, layer=3)], ids=["fastv", "greedyprune"])
@pytest.mark.parametrize("how", ["count", "indices"])
def test_logits_without_labels(family, layout, pruner, how):
    model, batch = build(family), inputs(family, layout)
    with attach(model, pruner) as handle:
        out = generate(model, batch, STEPS)
        generated = handle.report.stages[0].kept
        length = out.sequences.shape[1]
        rows = STEPS + 1 if how == "count" else torch.arange(length - STEPS - 1, length)
        logits = scored(model, batch, out, logits_to_keep=rows)
        assert all(map(torch.equal, handle.report.stages[0].kept, generated))
        assert any("logits of the last 6 tokens" in note for note in handle.report.notes)
    torch.testing.assert_close(logits[:, :STEPS], torch.stack(out.logits, 1), atol=1e-4, rtol=0)


def test_a_call_that_failed_says_nothing_of_the_next():
    model, batch = build("llava"), inputs("llava", "one image")
    with attach(model, FastV(keep=0.3)) as handle, torch.no_grad():
        model(**batch)
        alone = handle.report.stages[0].kept
        with pytest.raises((ValueError, TypeError, AttributeError)):
            model(logits_to_keep=9, pixel_values=batch["pixel_values"])
        model.model(**batch)
        assert all(map(torch.equal, handle.report.stages[0].kept, alone))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_arguments_by_place_mean_what_they_mean_by_name(family, whole):
    """The mask says which tokens are padding, the labels where the question ends, however they are given."""
    model, batch = build(family), inputs(family, "ragged")
    if whole:
        batch["labels"] = batch["input_ids"].masked_fill(torch.arange(batch["input_ids"].shape[1]) < 20, -100)
    called = model if whole else model.model
    names = list(inspect.signature(called.forward).parameters)
    last = max(names.index(name) for name in batch)
    by_place = [batch.get(name) for name in names[: last + 1]]
    with FastV(keep=0.3)(model) as pruned, torch.no_grad():
        wanted, found = called(**batch), called(*by_place)
        first, second = pruned.report.prefills
    for ours, theirs in zip(first.stages, second.stages, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.kept, theirs.kept, strict=True))
    assert torch.equal(wanted[1] if whole else wanted[0], found[1] if whole else found[0])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_padding_on_the_right_changes_nothing(family):
    """The question ends where the padding begins."""
    model, batch = build(family), inputs(family, "one image")
    padded = {
        name: torch.nn.functional.pad(value, (0, 3)) if value.shape[:2] == batch["input_ids"].shape else value
        for name, value in batch.items()
    }
    with attach(model, FastV(keep=0.3)) as handle, torch.no_grad():
        logits = model(**batch).logits
        alone = handle.report.stages[0]
        more = model(**padded).logits
        assert torch.equal(handle.report.stages[0].kept[0], alone.kept[0])
    torch.testing.assert_close(more[:, : logits.shape[1]], logits, atol=1e-4, rtol=0)
