"""The three laws for every method, family, attention backend and batch shape."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from foveate.engine import attach
from tests.laws.methods import METHODS, REFUSED, assert_refused
from tests.laws.reference import hidden_from, reference_logits
from tests.tiny_models import BUILDERS, LAYOUTS, WITH_VIDEOS, build, generate, inputs, single, visual

STEPS = 6
SHAPES = ["one image", "two images", "no image", "ragged", "ragged with text only", "video"]


def layouts(*names):
    """Every family, backend and layout of these names."""
    cases = [
        (family, attention, layout)
        for family in BUILDERS
        for attention in ("sdpa", "eager")
        for layout in names
        if layout != "video" or family in WITH_VIDEOS
    ]
    return pytest.mark.parametrize(("family", "attention", "layout"), cases, ids=map("-".join, cases))


@pytest.fixture
def model(family, attention):
    return build(family, attention)


@pytest.mark.parametrize("method", METHODS)
@layouts(*SHAPES)
def test_keep_all_is_bit_identical(model, family, layout, method):
    batch = inputs(family, layout)
    dense = generate(model, batch, STEPS)
    everything = dataclasses.replace(METHODS[method], keep=1.0)
    for always_gather in (False, True):
        with attach(model, everything, _always_gather=always_gather):
            pruned = generate(model, batch, STEPS)
        assert torch.equal(pruned.sequences, dense.sequences)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(pruned.logits, dense.logits, strict=True))


@pytest.mark.parametrize("method", METHODS)
@layouts(*SHAPES)
def test_pruned_equals_masked_reference(model, family, layout, method):
    if (family, method) in REFUSED:
        return assert_refused(model, method)
    batch = inputs(family, layout)
    with METHODS[method](model) as pruned:
        out = generate(model, batch, STEPS)
    length = batch["input_ids"].shape[1]
    gone = hidden_from(pruned.report, visual(batch))
    compacted = METHODS[method].compact_cache
    assert (gone.min() < 6) == (layout != "no image"), "nothing was pruned"
    for step, logits in enumerate(out.logits):
        expected = reference_logits(model, batch, out.sequences[:, : length + step], gone, compacted)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@layouts("ragged", "ragged with text only", "video")
def test_batch_equals_its_samples_alone(model, family, layout, method):
    if (family, method) in REFUSED:
        return assert_refused(model, method)
    batch = inputs(family, layout)
    with METHODS[method](model) as pruned:
        together = generate(model, batch, STEPS)
    report = pruned.report
    for row in range(len(LAYOUTS[layout])):
        alone = single(family, layout, row)
        padding = batch["input_ids"].shape[1] - alone["input_ids"].shape[1]
        with METHODS[method](model) as pruned:
            out = generate(model, alone, STEPS)
        for ours, theirs in zip(pruned.report.stages, report.stages, strict=False):  # a sample without images has none
            assert torch.equal(ours.kept[0] + padding, theirs.kept[row])
        assert torch.equal(out.sequences[0, -STEPS:], together.sequences[row, -STEPS:])
        for ours, theirs in zip(out.logits, together.logits, strict=True):
            torch.testing.assert_close(ours[0], theirs[row], atol=1e-4, rtol=0)
