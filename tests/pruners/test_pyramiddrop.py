"""PyramidDrop's stages and counts."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from tests.models.build import build, generate, inputs
from tests.pruners.visual_tokens import visual_tokens


def test_published_stages():
    pruner = foveate.PyramidDrop()
    assert pruner.layers(32) == (8, 16, 24)
    assert pruner.keep == 0.5**3
    with pytest.raises(BudgetError, match="four decoder layers"):
        pruner.layers(3)


def test_each_stage_keeps_the_most_attended_half():
    tokens = visual_tokens([[Grid(4, 5)], [Grid(3, 3)]])
    keep = foveate.PyramidDrop(keep=0.125).select(tokens)
    for sample, (number, wanted) in enumerate(((20, 10), (9, 4))):
        mean = tokens.attention[sample, :, 0].mean(0)[:number]
        assert keep[sample].nonzero()[:, 0].tolist() == sorted(mean.topk(wanted).indices.tolist())


def test_what_is_left_behind_each_stage():
    model, batch = build("llava"), inputs("llava", "two images")
    with foveate.PyramidDrop(keep=0.125)(model) as pruned:
        generate(model, batch, 1)
    assert [(stage.layer, len(stage.kept[0])) for stage in pruned.report.stages] == [(1, 16), (3, 8), (4, 4)]
    kept = [set(stage.kept[0].tolist()) for stage in pruned.report.stages]
    assert kept[2] < kept[1] < kept[0]


@pytest.mark.parametrize("keep", [3, 0.0, 1.5, float("nan")])
def test_keeps_that_make_no_sense(keep):
    with pytest.raises(BudgetError):
        foveate.PyramidDrop(keep=keep)
    assert torch.is_tensor(foveate.PyramidDrop(keep=1.0).select(visual_tokens([[Grid(2, 2)]])))
