"""Gemma 4: grids where the patches' places are given, one row with a note where not, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foveate
from foveate.engine import prompt
from foveate.errors import BudgetError, UnsupportedCacheError, UnsupportedModelError
from foveate.families import FAMILIES
from foveate.testing import check_laws
from tests.families.test_grids import shown
from tests.laws.methods import Ladder
from tests.models import TINY
from tests.models.build import build, generate, inputs, make, pictures
from tests.models.gemma import gemma4_e
from tests.models.qwen3_and_glm import NEWER, newer

pytestmark = pytest.mark.skipif("gemma4" not in NEWER, reason="this transformers has no Gemma 4")


def small(**changes):
    model, config = newer("gemma4")
    for name, value in changes.items():
        setattr(config.text_config, name, value)
    return make(model, type(config)(**config.to_dict()))


def test_generate_tells_no_rows_and_the_report_says_so():
    batch = inputs("gemma4", "two images")
    for how in ("generate", "beams"):
        tokens = shown(build("gemma4"), batch, how)[0]
        assert not tokens.grids_known
        assert [[grid.length for grid in row] for row in tokens.grids] == [[24, 36]] * (2 if how == "beams" else 1)
    with foveate.BTP(stages=[(1, 0.5, 0.5)])(build("gemma4")) as pruned:
        build("gemma4").generate(**batch, max_new_tokens=1)
    assert any("single row of tokens" in note for note in pruned.report.notes)


def test_the_pooler_takes_squares_row_by_row():
    """Each token is the mean of the square of patches that its row and column in the grid name."""
    (sample,), tower = pictures("gemma4", "two images"), build("gemma4").model.vision_tower
    given = inputs("gemma4", "two images")
    places = given["image_position_ids"]
    codes = torch.nn.functional.pad(places.float(), (0, 30))
    pooled, there = tower.pooler(codes, places, (places == -1).all(-1), 36)
    found = (pooled[there][:, :2] / tower.pooler.root_hidden_size).tolist()
    expected = [
        [2 * column + 0.5, 2 * row + 0.5]
        for image in sample
        for row in range(image.grids[0].height)
        for column in range(image.grids[0].width)
    ]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    grids = FAMILIES["gemma4"].image_grids(build("gemma4").config, given, [])
    assert grids == [image.grids for image in sample]


def test_with_experts():
    model = small(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32)
    assert hasattr(model.get_decoder().layers[0], "experts")
    for law in check_laws(model, inputs("gemma4", "ragged"), Ladder())[:2]:
        law.require()


def shared(kinds: str, number: int, attention: str = "sdpa"):
    """A small Gemma 4 whose last `number` layers read the keys and values of layers before."""
    tiny = TINY["gemma4_e2b"]
    return make(*dataclasses.replace(tiny, settings=lambda: gemma4_e(kinds, number)).make(), attention)


@pytest.mark.parametrize("layers", [(2,), (1, 3), (5,)])
def test_no_stage_between_keys_and_their_readers(layers):
    """Of "sfsfsf", 3 shared: layers 3 and 5 read what layer 1 makes, layer 4 what layer 2 does."""
    model = shared("sfsfsf", 3)
    says = "keys and values that layers 1 and 2 .* in layers 3 to 5, .* before layers 0 and 1$"
    with pytest.raises(BudgetError, match=says) as caught:
        foveate.attach(model, Ladder(cuts=layers))
    assert "\n" not in str(caught.value)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["one image", "ragged"])
@pytest.mark.parametrize("compact", [False, True])
def test_readers_of_both_kinds_see_what_their_sources_hold(attention, layout, compact):
    model = shared("sfsfsf", 3, attention)
    pruner = Ladder(cuts=(0, 1), compact_cache=compact)
    for law in check_laws(model, inputs("gemma4_e2b", layout), pruner)[:2]:
        law.require()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("cache", [False, True])
def test_last_layers_may_be_given_the_last_tokens_alone(attention, rows, cache, monkeypatch):
    """As many logits as were asked for, those of the tokens that are there as if all had been asked for."""
    model, batch = shared("sfsfsf", 3, attention), inputs("gemma4_e2b", [[20, None, 2], [3, None, 2]])
    monkeypatch.setattr(prompt, "_answer_rows", lambda scored, length: 1)  # else it would end the question elsewhere
    seen = []
    handle = model.get_decoder().layers[4].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    with Ladder(cuts=(0, 1))(model), torch.no_grad():
        some = model(**batch, logits_to_keep=rows, use_cache=cache).logits
        everything = model(**batch, logits_to_keep=0, use_cache=cache).logits
    handle.remove()
    assert some.shape[1] == min(rows, batch["input_ids"].shape[1])
    if rows < seen[1]:
        assert seen[0] == rows
    torch.testing.assert_close(some, everything[:, -some.shape[1] :], atol=1e-4, rtol=0)  # zero where one was dropped


def test_the_report_counts_layers_with_a_cache():
    with foveate.Random(keep=0.5, layer=1)(shared("sfsfsf", 3)) as pruned:
        generate(pruned.model, inputs("gemma4_e2b", "one image"), 1)
    assert pruned.report.kv_share == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert pruned.report.flops_dense is None


def test_static_caches_of_shared_layers_are_refused():
    model = shared("ffffff", 2)
    with foveate.Random(keep=0.5, layer=1)(model), pytest.raises(UnsupportedCacheError, match="share keys and values"):
        generate(model, inputs("gemma4_e2b", "one image"), 2, cache_implementation="static", disable_compile=True)


def test_vision_features_are_refused():
    with pytest.raises(UnsupportedModelError, match="averages patches by places") as caught:
        FAMILIES["gemma4"].vision_blocks(build("gemma4"))
    assert "\n" not in str(caught.value)
