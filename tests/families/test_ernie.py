"""ERNIE-4.5-VL: the tokens that are left go to the experts that they went to in the dense run."""

from __future__ import annotations

import pytest
import torch

from foveate import GreedyPrune, Random, errors
from tests.models.build import BUILDERS, build, generate, inputs

FAMILY = "ernie4_5_vl_moe"
pytestmark = pytest.mark.skipif(FAMILY not in BUILDERS, reason="this transformers has no such model")


@pytest.mark.oldest
@pytest.mark.parametrize("layout", ["two images", "ragged with text only", "video"])
@pytest.mark.parametrize("keep", [1.0, 0.4, 2])
def test_tokens_keep_their_experts(layout, keep):
    """As many tokens go through the visual experts of a layer as visual ones are left, and those around images."""
    model, batch = build(FAMILY), inputs(FAMILY, layout)
    types = batch["moe_mm_token_type_ids"]
    seen = {"text": 0, "vision": 0}

    def count(name):
        return lambda _, args: seen.update({name: args[0].numel() // 64})

    mlp = model.get_decoder().layers[4].mlp
    handles = [
        mlp.text_moe.register_forward_pre_hook(count("text")),
        mlp.vision_moe.register_forward_pre_hook(count("vision")),
    ]
    with Random(keep=keep, layer=2)(model) as pruned, torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    stage = pruned.report.stages[0]
    around = (types > 0).sum() - sum(stage.dense)
    assert seen["vision"] == int(around) + sum(map(len, stage.kept))


@pytest.mark.parametrize("layer", [0, 2])
def test_types_of_another_length_are_refused(layer):
    """`generate()` without a cache does not lengthen them: the dense model stops, and a cut must not hide that."""
    model, batch = build(FAMILY), inputs(FAMILY, "one image")
    short = batch | {"moe_mm_token_type_ids": batch["moe_mm_token_type_ids"][:, 1:]}
    with torch.no_grad(), pytest.raises(IndexError):
        model(**short)
    with GreedyPrune(keep=0.5, layer=layer)(model), torch.no_grad():
        with pytest.raises(errors.UnsupportedModelError, match="one entry a token"):
            model(**short)
        generate(model, batch, 1)
