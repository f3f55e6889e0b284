"""`generate()` of current transformers hands the model encoded images, no pixels: pruning must happen there too."""

from __future__ import annotations

import pytest
import transformers

from foveate import DivPrune, FastV, GreedyPrune, Random
from foveate.engine.arguments import cache_of
from tests.models.build import ATTENTIVE, IMAGE, build, caches, generate, inputs

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("family", ATTENTIVE)
@pytest.mark.parametrize("layout", ["one image", "two images", "ragged"])
@pytest.mark.parametrize(
    "pruner", [Random(keep=0.3, layer=0), FastV(keep=0.3), GreedyPrune(keep=0.3), DivPrune(keep=5)]
)
def test_generate_shortens_the_cache(family, layout, pruner):
    model, batch = build(family), inputs(family, layout)
    calls = []
    handle = model.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: calls.append(set(kwargs)), with_kwargs=True
    )
    try:
        with pruner(model) as pruned:
            out = generate(model, batch, 4)
    finally:
        handle.remove()
    newer = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 19)
    assert ("mm_encoder_outputs" in calls[0]) == newer, "generate() no longer does what this test is about"
    visual = (batch["input_ids"] == IMAGE).sum(-1)
    text = batch["attention_mask"].sum(-1) - visual
    kept = [len(row) for row in pruned.report.stages[0].kept]
    assert all(0 < number < int(dense) for number, dense in zip(kept, visual, strict=True))
    full = batch["input_ids"].shape[1] + 3
    short = max(int(words) + number for words, number in zip(text, kept, strict=True)) + 3
    cached = caches(family, cache_of(out))
    expected = [full] * pruner.layer + [short] * (len(cached) - pruner.layer)
    for layer, number in zip(cached, expected, strict=True):
        assert layer.keys.shape[-2] <= number if layer.is_sliding else layer.keys.shape[-2] == number
