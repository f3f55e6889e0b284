"""VTW: nothing is left behind its layer, and BTP's stage that drops everything says the same."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from tests.models.build import build, generate, inputs


def test_the_layer():
    assert foveate.VTW().layers(32) == (16,)
    assert foveate.VTW(layer=5).layers(32) == (5,)
    assert foveate.VTW(keep=0.4).layers(32) == (13,)
    model = build("llava")
    assert foveate.VTW(layer=1).with_mean(0.5, model.config) == foveate.VTW(keep=0.5)


def test_it_is_btps_last_stage_alone():
    model, batch = build("llava"), inputs("llava", "ragged")
    runs = []
    for pruner in (foveate.VTW(layer=4), foveate.BTP(stages=[(4, 0.0)], final="drop")):
        with pruner(model) as pruned:
            runs.append(torch.stack(generate(model, batch, 3).logits))
        (stage,) = pruned.report.stages
        assert (stage.layer, [len(kept) for kept in stage.kept]) == (4, [0, 0, 0])
    assert torch.equal(*runs)


@pytest.mark.parametrize("options", [{"keep": 3}, {"keep": 0.5, "layer": 2}, {"layer": -1}, {"layer": True}])
def test_options_that_make_no_sense(options):
    with pytest.raises(BudgetError, match="vtw"):
        foveate.VTW(**options)


@pytest.mark.parametrize("options", [{"layer": 6}, {"keep": 0.01}, {"keep": 0.99}])
def test_a_layer_that_the_model_lacks(options):
    with pytest.raises(BudgetError, match="of 6|of a model of 6|model of 6"):
        foveate.VTW(**options).layers(6)
