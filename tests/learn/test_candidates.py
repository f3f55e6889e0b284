import pytest

from foveate.errors import BudgetError
from foveate.learn.btp.candidates import (
    ATTENTION,
    attention_round,
    drop_round,
    first_round,
    kept_stages,
    layer_sets,
    make_stages,
    seed_round,
    solve,
)
from foveate.learn.btp.curve import stages_from_curve
from foveate.pruners.btp.stages import BTPStage


@pytest.mark.parametrize("depth", [6, 12, 28, 32, 80])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("budget", [0.11, 0.22, 0.5, 0.9])
def test_every_candidate_is_at_the_budget(depth, count, budget):
    curve = stages_from_curve([(5 * layer % 7) / 7 for layer in range(depth)], count)
    found, left_out = first_round(curve, depth // 2, count, budget, depth)
    assert found or left_out
    for one in found:
        assert one.pruner.mean_tokens(depth) == pytest.approx(budget, abs=1e-5)
        assert max(stage.keep for stage in one.pruner.schedule(depth)) < 1
    if found:
        best = found[0]
        more = attention_round(best, budget) + seed_round(best, budget)
        assert all(one.pruner.mean_tokens(depth) == pytest.approx(budget, abs=1e-5) for one in more)
        assert all(one.layers == best.layers for one in more)


def test_layers_stand_once_and_under_their_first_name():
    sets = layer_sets((1, 2, 5), 6, 3, 12)  # the curve's are the default ones
    assert len(set(sets.values())) == len(sets)
    assert sets["curve"] == (1, 2, 5)
    assert "default" not in sets
    assert sets["curve, and layer 0"] == (0, 1, 2, 5)
    assert next(iter(sets.items())) == ("4 to the reading depth, denser early", (0, 1, 3, 6))
    assert sets["3 to the reading depth, even"] == (0, 3, 6)
    assert sets["5 to the reading depth, even"] == (0, 2, 3, 4, 6)


@pytest.mark.parametrize("reading", [0, 1, 3, 12])
def test_layers_fit_any_reading_depth(reading):
    for layers in layer_sets((2,), reading, 1, 12).values():
        assert list(layers) == sorted(set(layers))
        assert layers[-1] < 12


def test_no_attention_before_layer_0():
    for attention in ATTENTION:
        stages = make_stages((0, 3, 6), "halving", attention)
        assert stages[0].attention == 0
        assert [stage.keep for stage in stages] == [1, 0.5, 0.25]
        assert stages[-1].attention == ATTENTION[attention][1]


def test_a_drop_leaves_more_tokens_above_it():
    found, _ = first_round((2, 4, 6), 6, 3, 0.22, 12)
    (dropped,) = drop_round(found[0], 0.22, 9)
    assert dropped.layers == (*found[0].layers, 9)
    assert dropped.pruner.mean_tokens(12) == pytest.approx(0.22, abs=1e-5)
    for with_drop, without in zip(kept_stages(dropped), kept_stages(found[0]), strict=True):
        assert with_drop.keep > without.keep
    assert drop_round(found[0], 0.22, 6) == []  # not above the last stage


def test_what_cannot_reach_the_budget_is_left_out_and_said():
    found, left_out = first_round((8, 9, 10), 6, 3, 0.22, 12)
    assert all(one.where != "curve" for one in found)
    assert any("curve [8, 9, 10]" in line and "cannot be reached" in line for line in left_out)
    with pytest.raises(BudgetError, match="keep everything"):
        solve([BTPStage(0, 1.0), BTPStage(1, 0.01, 0.5)], 0.2, 12, None)


def test_variations_leave_the_best_one_itself_out():
    best = first_round((2, 4, 6), 6, 3, 0.22, 12)[0][0]
    ladders = attention_round(best, 0.22)
    assert len(ladders) == len(ATTENTION) - 1
    assert len({one.pruner for one in [best, *ladders, *seed_round(best, 0.22)]}) == len(ATTENTION) + 4
    assert [kept_stages(one)[0].spatial for one in seed_round(best, 0.22)] == [0.25, 0.5, 0, 0]
    assert [kept_stages(one)[0].over for one in seed_round(best, 0.22)] == [1.2, 1.2, 1, 1.5]
