"""Predictions against reports of real runs and against sums done by hand; no test looks at a clock."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import MixtralConfig

from foveate import BTP, DART, DivPrune, FastV, GlimpsePrune, GreedyPrune, PyramidDrop, Random, VisionZip
from foveate.errors import BudgetError, UnsupportedModelError
from foveate.measure.predict import selection as choosing
from foveate.measure.predict.measure_rates import measure_rates
from foveate.measure.predict.predict import break_even, predict
from foveate.measure.predict.rates import LayerSizes, RateCurve, Rates, RatesError
from foveate.measure.predict.selection import grid_of
from tests.laws.methods import METHODS
from tests.models.build import build, inputs
from tests.shared_state import draws

SMALL = SimpleNamespace(
    hidden_size=8, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=4
)
WEIGHTS = 8 * (2 * 8 + 2 * 4 + 3 * 16)  # of a layer of SMALL
FREE = RateCurve(((1, 1e30),))


def rates(*pruners, config=SMALL, seconds=1e-9, grows=False, batch=1, **changes) -> Rates:
    """A machine on which only matrix products take time: 1 ms for each token in all layers of SMALL."""
    curve = seconds if isinstance(seconds, RateCurve) else RateCurve(((1, seconds),), grows)
    own = {
        "device": "cpu",
        "dtype": "float32",
        "linear": RateCurve(((1, 2.0 * WEIGHTS * 4 / 1e-3),)),
        **dict.fromkeys(("attention", "pointwise", "bandwidth"), FREE),
        "overhead": 1e-30,
        "choosing": {choosing.key(pruner, config, batch): curve for pruner in pruners},
    }
    return Rates(**{**own, **changes})


# -- against the report of a run


@pytest.mark.parametrize(
    "pruner",
    [
        Random(keep=0.3),
        Random(keep=0.3, layer=4, compact_cache=True),
        FastV(keep=5, layer=2),
        GreedyPrune(keep=0.22),
        DivPrune(keep=0.11),
        DivPrune(keep=1.0),
        PyramidDrop(keep=0.125),
        BTP(keep=0.5),
        BTP(keep=0.4, final="drop", compact_cache=True),
        BTP(query="mean_text", keep=0.6),
        GlimpsePrune(max_keep=0.3, threshold=0.0),
        GlimpsePrune(keep=0.4),
        dataclasses.replace(METHODS["glimpseprune"], keep=0.4),  # with a token of its own
        METHODS["ladder from 0 compacted"],
        VisionZip(keep=0.3, block=-1),  # which reads the vision encoder and merges
        DART(keep=0.3),  # which reads keys and text
    ],
    ids=lambda pruner: pruner.name,
)
def test_tokens_flops_and_cache_are_those_of_the_report(pruner):
    model, batch = build("llava"), inputs("llava", "two images")
    with pruner(model) as pruned, torch.inference_mode():
        model(**batch)
    report, text = pruned.report, model.config.get_text_config()
    visual = report.stages[0].dense[0]
    words = batch["input_ids"].shape[1] - visual
    found = predict(model.config, pruner, visual, rates(pruner, config=text), text=words)
    assert list(found.tokens_per_layer) == report.tokens_per_layer
    assert [left for _, left in found.stages] == [len(stage.kept[0]) for stage in report.stages]
    assert (found.flops_dense, found.flops_pruned) == pytest.approx((report.flops_dense, report.flops_pruned))
    assert found.kv_share == pytest.approx(report.kv_share)


# -- by hand


def test_prefill_is_the_sum_of_its_parts():
    pruner = Random(keep=0.25, layer=1)
    found = predict(SMALL, pruner, 40, rates(pruner, seconds=0.5), text=10, vision=2.0)
    assert dataclasses.astuple(found.dense)[:3] == pytest.approx((2, 50e-3 / 4, 3 * 50e-3 / 4))
    assert dataclasses.astuple(found.pruned)[:3] == pytest.approx((2, 50e-3 / 4, 3 * 20e-3 / 4))
    assert found.pruned.choosing == pytest.approx(0.5)
    assert found.speedup == pytest.approx(2.05 / (2 + 12.5e-3 + 15e-3 + 0.5))
    assert json.loads(json.dumps(found.to_dict()))["speedup"] == pytest.approx(found.speedup)


def test_cache_and_memory_in_bytes():
    pruner = Random(keep=0.5, layer=2)
    found = predict(SMALL, pruner, 40, rates(pruner, batch=3), text=10, batch=3)
    token = 2 * 4 * 4  # keys and values, one head of 4, float32
    assert found.kv_dense == 4 * 3 * 50 * token
    assert found.kv_pruned == 3 * (2 * 50 + 2 * 30) * token
    alive = 50 * 3 * (4 * 8 + 3 * 16) * 4
    assert found.weights == 4 * WEIGHTS * 4
    assert found.memory_dense == found.kv_dense + alive
    assert found.memory_pruned == 2 * 3 * 50 * token + alive  # before the cut


def test_gain_grows_with_the_prompt_and_with_what_goes():
    def speedups(pruners, visuals):
        return [predict(SMALL, one, visual, rates(one, seconds=0.02)).speedup for one in pruners for visual in visuals]

    assert speedups([DivPrune(keep=0.2)], [32, 128, 512, 2048]) == sorted(
        speedups([DivPrune(keep=0.2)], [32, 128, 512, 2048])
    )
    by_keep = speedups([DivPrune(keep=keep) for keep in (0.9, 0.5, 0.22, 0.11)], [512])
    assert by_keep == sorted(by_keep)
    assert by_keep[0] < by_keep[-1]


def test_break_even_by_hand():
    """10 + n > 1.1 (10 + n/2 + 20) first holds for n = 52."""
    pruner = Random(keep=0.5)
    assert break_even(SMALL, pruner, rates(pruner, seconds=20e-3), text=10, margin=0.1) == 52
    # 10 + n > 10 + n/2 + 20
    assert break_even(SMALL, pruner, rates(pruner, seconds=20e-3), text=10, margin=0.0) == 41


def test_never_where_choosing_costs_what_it_saves():
    pruner = Random(keep=0.5)
    dear = RateCurve(((1, 0.6e-3), (1000, 0.6)), grows=True)
    assert break_even(SMALL, pruner, rates(pruner, seconds=dear), text=10) is None
    assert break_even(SMALL, pruner, rates(pruner, seconds=20e-3), text=10, limit=51) is None


def test_under_the_least_length_nothing_is_pruned():
    plain, careful = Random(keep=0.5), Random(keep=0.5, min_visual=52)
    machine = rates(plain, seconds=20e-3)
    assert break_even(SMALL, careful, machine, text=10) == 52
    below, above = (predict(SMALL, careful, visual, machine, text=10) for visual in (51, 52))
    assert below.pruned == below.dense
    assert "min_visual=52" in below.skipped
    assert above.skipped is None
    assert above.speedup > 1.1


def test_without_an_image_nothing_is_pruned():
    found = predict(SMALL, METHODS["ladder from 0 compacted"], 0, rates(), text=10)
    assert found.skipped == "no visual tokens"
    assert found.speedup == found.kv_share == found.memory_share == 1


# -- what is not known


def test_a_method_that_finds_its_own_budget_needs_one():
    pruner = GlimpsePrune()
    with pytest.raises(BudgetError, match="finds its own budget"):
        predict(SMALL, pruner, 40, rates(pruner))
    assert predict(SMALL, pruner, 40, rates(pruner), share=0.25).tokens_per_layer[-1] == 10
    capped = GlimpsePrune(max_keep=0.5, min_keep=22)
    assert predict(SMALL, capped, 40, rates(capped), share=0.9).tokens_per_layer[-1] == 22


def test_layers_of_unknown_cost_are_refused():
    with pytest.raises(UnsupportedModelError, match="mixtral"):
        predict(MixtralConfig(), Random(), 40, rates())


@pytest.mark.parametrize(
    "wrong", [{"visual": -1}, {"visual": 2.5}, {"text": True}, {"batch": 0}, {"visual": 0, "text": 0}]
)
def test_bad_numbers(wrong):
    with pytest.raises(BudgetError, match="whole number|at least one token"):
        predict(SMALL, Random(), **{"visual": 4, **wrong}, rates=rates(Random()))


def test_choosing_is_not_timed_for_another_machine():
    with pytest.raises(RatesError, match="not the machine"):
        predict(SMALL, Random(), 40, rates())
    with pytest.raises(RatesError, match="not the machine"):
        break_even(SMALL, Random(), rates())
    with pytest.raises(BudgetError, match="margin"):
        break_even(SMALL, Random(), rates(), margin=-0.1)


# -- rates


def test_a_curve_between_and_beyond_its_points():
    curve = RateCurve(((10, 100), (1000, 1)))
    assert [curve.at(size) for size in (1, 10, 100, 1000, 10**6)] == pytest.approx([100, 100, 10, 1, 1])
    assert dataclasses.replace(curve, grows=True).at(10**5) == pytest.approx(0.01)


@pytest.mark.parametrize("points", [(), ((1, 0),), ((2, 1), (1, 1)), ((1, float("nan")),), 3, ((1, "x"),)])
def test_no_curve(points):
    with pytest.raises(RatesError):
        RateCurve(points)


def test_rates_of_this_machine():
    before = draws()
    measured = measure_rates(config=SMALL, seconds=0.05)
    assert draws() == before
    assert measured.here
    assert measured.shape == LayerSizes(8, 16, 2, 1, 4)
    assert Rates.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    assert not dataclasses.replace(measured, machine={**measured.machine, "threads": 99}).here
    found = predict(SMALL, DivPrune(keep=0.5), 16, measured)
    assert 0 < found.pruned.choosing < found.pruned.total


def test_rates_survive_a_file(tmp_path):
    saved = rates(Random(), machine={"cores": 2}, versions={"torch": "2"}, shape=LayerSizes(8, 16, 2, 1, 4))
    saved.save(tmp_path / "deep" / "rates.json")
    assert Rates.load(tmp_path / "deep" / "rates.json") == saved


def test_files_that_hold_no_rates(tmp_path):
    path = tmp_path / "rates.json"
    for text in ("{", "[]", "{}", json.dumps({**rates().to_dict(), "more": 1})):
        path.write_text(text)
        with pytest.raises(RatesError, match="rates.json"):
            Rates.load(path)
    for change in ({"overhead": 0}, {"dtype": "int8"}, {"linear": 3}):
        with pytest.raises(RatesError):
            Rates.from_dict({**rates().to_dict(), **change})
    with pytest.raises(RatesError, match="rates.json"):
        Rates.load(tmp_path / "no" / "rates.json")


@pytest.mark.parametrize("visual", [1, 2, 7, 576, 2880, 8191])
def test_a_grid_holds_every_token(visual):
    grid = grid_of(visual)
    assert grid.length == visual
    assert grid.after < grid.width
    assert grid.width <= 2 * grid.height + 2
