"""What a method says where it says nothing, and what a budget that means everything becomes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foveate
from foveate.pruners.base import Pruner
from tests.models.build import build, generate, inputs


@dataclasses.dataclass(frozen=True)
class Plain(Pruner):
    """Names its layer and takes every second token."""

    name = "plain"

    def stage_layers(self, depth):
        return (1,)

    def select(self, tokens):
        return tokens.valid & (torch.arange(tokens.valid.shape[1]) % 2 == 0)


def test_a_method_that_says_nothing_asks_for_nothing():
    plain = Plain()
    for stage in (0, 1, 2):
        assert plain.kv(stage) == ()
        assert [plain.wants_previous(stage), plain.wants_text(stage), plain.wants_rotary(stage)] == [False] * 3
    assert plain.vision_layers(4) == plain.vision_attention(4) == plain.notes(4) == ()
    assert Plain.brings_budget({"keep": 0.5}) is False
    assert plain.resolved(None) is plain


@pytest.mark.parametrize("method", [foveate.FastV, foveate.DivPrune], ids=["before layer 2", "before layer 0"])
def test_a_mean_of_everything_is_a_budget_of_everything(method):
    made = method(keep=0.3).with_mean(1.0, build("llava").config)
    assert made.keep == 1.0
    assert made.keeps_all


def test_where_everything_stays_the_hidden_states_pass_as_they_are():
    """Nothing is gathered, so nothing is copied: the layers see the tensor of the layer before."""
    model, seen = build("llava"), []
    layers = model.model.language_model.layers
    after = layers[1].register_forward_hook(lambda module, args, out: seen.append(out))
    before = layers[2].input_layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        for keep, same in ((16, True), (5, False)):  # of 16 visual tokens
            seen.clear()
            with foveate.Random(keep=keep, layer=2)(model):
                generate(model, inputs("llava", "one image"), 1)
            assert (seen[0].data_ptr() == seen[1].data_ptr()) == same
    finally:
        after.remove()
        before.remove()


def test_what_a_budget_lets_stay():
    dense, present = torch.tensor([40, 30]), torch.tensor([8, 30])
    assert Plain().planned(1, dense, present) is None
    assert foveate.Pool(keep=0.5).kept(0, dense, present) is None
    assert foveate.Pool(keep=0.5).planned(0, dense, present).tolist() == [8, 15]
    assert foveate.Pool(keep=7).planned(0, dense, present).tolist() == [7, 7]
    assert foveate.FastV(keep=0.5).planned(2, dense, present).tolist() == [8, 15]
    assert foveate.GlimpsePrune().planned(4, dense, present) is None


def test_a_budget_that_is_a_mean_says_nothing_of_one_stage():
    class Mean(Plain):
        keep = 0.5
        keep_is_mean = True

    dense = torch.tensor([40])
    assert Mean().planned(1, dense, dense) is None
