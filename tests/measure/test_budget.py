"""One number for every method: the budget that is solved for a share gives that share in the report of a run."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
import torch

import foveate
from foveate import BTP, VTW, Chain, DivPrune, FastV, GlimpsePrune, PyramidDrop, Random
from foveate.errors import BudgetError
from foveate.measure.budget import PromptCost, check_budget
from foveate.measure.overlay import visual_positions
from foveate.pruners import METHODS, Pruner
from tests.models.build import build, inputs

FILMS = ("evs", "vidcom2")
WANTED = {"mean": 0.55, "kv": 0.55, "flops": 0.6}
CHAINS = {
    "chain": Chain(DivPrune(keep=0.5), BTP()),
    "chain with a fixed layer": Chain(DivPrune(keep=0.9), FastV(keep=0.7, layer=3), VTW(layer=10)),
    "chain, compacted": Chain(Random(keep=0.6), GlimpsePrune(keep=0.3)),
    "compacted": FastV(layer=4, compact_cache=True),
    "no drop": BTP(final="keep"),
    "published": BTP(variant="released"),
}
PRUNERS: dict[str, Pruner] = {name: foveate.make(name) for name in METHODS if name not in FILMS} | CHAINS
COARSE = {"pool": 0.04, "vtw": 0.5 / 12}  # whole rows and columns of cells, at most; whole layers of 12
LATE = {"glimpseprune": {"mean": 0.8, "flops": 0.8}, "vtw": {"flops": 0.55}}  # which cuts before layer 8 of 12


@pytest.fixture(scope="module")
def scene():
    model, processor = foveate.tiny.load()
    image = foveate.tiny.make_scene(np.random.default_rng(3)).pil()
    text = foveate.tiny.prompt("how many circles are there?")
    return model, processor(images=[image], text=text, return_tensors="pt")


def report_of(model, batch, pruner):
    with pruner(model) as pruned, torch.inference_mode():
        model(**batch)
    return pruned.report.prefills[-1]


def share_of(report, budget):
    if budget == "flops":
        return report.flops_pruned / report.flops_dense
    return {"mean": report.mean_tokens_per_layer, "kv": report.kv_share}[budget]


def cost_of(model, batch, budget):
    visual = visual_positions(model.config, batch["input_ids"][0]).numel()
    return PromptCost.of(model, budget, visual, batch["input_ids"].shape[1] - visual)


@pytest.mark.parametrize("name", PRUNERS)
def test_the_report_gives_the_share_that_was_wanted(scene, name):
    """To within one token of the prompt; of FLOPs, of which attention takes the square, two."""
    model, batch = scene
    for budget, wanted in {**WANTED, **LATE.get(name, {})}.items():
        if budget == "kv" and not PRUNERS[name].compact_cache and name != "fastv":
            continue  # as the mean
        cost = cost_of(model, batch, budget)
        made = cost.solved(PRUNERS[name], wanted)
        share = share_of(report_of(model, batch, made), budget)
        close = COARSE.get(name, (2 if budget == "flops" else 1) / cost.visual)
        assert share == pytest.approx(wanted, abs=close + 1e-9), budget
        if name != "pool":
            assert cost.share(made) == pytest.approx(share, abs=1e-9), budget


@pytest.mark.parametrize("name", FILMS)
def test_of_a_video(name):
    model, batch = build("qwen2_5_vl"), inputs("qwen2_5_vl", "video")
    for budget in ("mean", "kv", "flops"):
        cost = cost_of(model, {"input_ids": batch["input_ids"][:1]}, budget)
        made = cost.solved(foveate.make(name), 0.75)
        share = share_of(report_of(model, batch, made), budget)
        assert share == pytest.approx(0.75, abs=4 / cost.visual), budget  # whole tokens of each frame


# -- what cannot be reached


def deep(depth=10, **changes):
    sizes = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_hidden_layers=depth)
    text = types.SimpleNamespace(**{**sizes, **changes})
    return types.SimpleNamespace(model_type="llava", get_text_config=lambda: text)


@pytest.mark.parametrize(
    ("pruner", "budget", "wanted", "between"),
    [
        (PyramidDrop(), "mean", 0.1, "20.0% and 100.0%"),
        (FastV(layer=4), "kv", 0.3, "40.6% and 100.0%"),
        (FastV(layer=4), "flops", 0.3, "%"),
        (VTW(), "kv", 0.95, "10.0% and 90.0%"),
        (VTW(), "flops", 0.99, "%"),
        (BTP(final="drop"), "kv", 0.8, "and 70.0%"),
        (BTP(final="drop"), "kv", 0.05, "10.6% and"),
        (Chain(Random(layer=1), VTW(layer=5)), "mean", 0.6, "10.0% and 50.0%"),
        (Chain(DivPrune(layer=2), FastV(layer=4)), "flops", 0.1, "%"),
    ],
    ids=lambda one: getattr(one, "name", None),
)
def test_what_cannot_be_reached_is_refused_with_the_range(pruner, budget, wanted, between):
    cost = PromptCost(budget, deep(), 100, 20)
    with pytest.raises(
        BudgetError, match=f"{pruner.name}: {wanted:.1%}|{pruner.name}: a mean of {wanted:.1%}"
    ) as caught:
        cost.solved(pruner, wanted)
    assert "lies between" in str(caught.value)
    assert between in str(caught.value)


def test_what_has_no_share():
    for budget in ("mean", "kv", "flops"):
        with pytest.raises(BudgetError, match="count"):
            PromptCost(budget, deep(), 100, 20).solved(Chain(Random(keep=40), FastV()), 0.5)
        with pytest.raises(BudgetError, match="finds its budget itself"):
            PromptCost(budget, deep(), 100, 20).solved(Chain(Random(keep=0.5), GlimpsePrune()), 0.5)
    with pytest.raises(BudgetError, match="in no formula"):
        PromptCost("flops", deep(num_experts=8), 100, 20).solved(Random(), 0.5)
    with pytest.raises(BudgetError, match="one of after, mean, kv, flops"):
        check_budget("ram", [0.5])
    with pytest.raises(BudgetError, match="a budget of kv is a share such as 0.22, and not the count 49"):
        check_budget("kv", [0.5, 49])


def test_all_is_off_and_a_prompt_without_images_is_left_alone():
    for pruner in PRUNERS.values():
        for budget in ("mean", "kv", "flops"):
            assert PromptCost(budget, deep(32), 100, 20).solved(pruner, 1.0).keep == 1.0
    assert PromptCost("kv", deep(), 0, 20).solved(FastV(), 0.3) == FastV()


def test_layers_without_a_cache_do_not_count():
    cached = (True,) * 4 + (False,) * 6
    assert PromptCost("kv", deep(), 100, 20, cached).share(FastV(keep=0.5, layer=2)) == pytest.approx(0.75)
    assert PromptCost("kv", deep(), 100, 20).share(FastV(keep=0.5, layer=2)) == pytest.approx(0.6)
    made = PromptCost("kv", deep(), 100, 20, cached).solved(FastV(layer=2), 0.75)
    assert made == dataclasses.replace(FastV(layer=2), keep=made.keep)
    assert made.keep == pytest.approx(0.5, abs=0.01)
