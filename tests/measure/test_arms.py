"""What an evaluation compares: its arms, by methods and budgets."""

import dataclasses
import types

import pytest

from foveate import make
from foveate.errors import BudgetError, UnknownMethodError
from foveate.measure.eval.arms import plan_arms
from foveate.pruners.spec import build, parse_methods

DEEP = types.SimpleNamespace(
    model_type="llava", get_text_config=lambda: types.SimpleNamespace(num_hidden_layers=10, hidden_size=64)
)


def labels(*arguments, layer=None, oracle=False):
    return [arm.label for arm in plan_arms(*arguments, layer, oracle)]


def test_the_baselines_are_always_there_and_dense_is_first():
    assert labels([], [0.5, 0.22]) == [
        "dense",
        "downsample @ 0.5",
        "downsample @ 0.22",
        "random @ 0.5",
        "random @ 0.22",
    ]


@pytest.mark.parametrize(
    ("methods", "layer", "stages"),
    [
        ("divprune", None, ["random"]),
        ("greedyprune", None, ["random:layer=2"]),
        ("divprune,greedyprune,fastv:layer=4", None, ["random", "random:layer=2", "random:layer=4"]),
        ("greedyprune,random:layer=2", None, ["random:layer=2"]),
        ("random:seed=3", None, ["random:seed=3"]),
        ("divprune,greedyprune", 3, ["random:layer=3"]),
        ("", 3, ["random:layer=3"]),
    ],
)
def test_random_tokens_at_every_stage_that_a_method_cuts_at(methods, layer, stages):
    found = labels(parse_methods(methods) if methods else [], [0.5], layer=layer)
    assert [label for label in found if label.startswith("random")] == [f"{one} @ 0.5" for one in stages]


def test_one_layer_for_all_but_those_that_say_their_own():
    arms = plan_arms(parse_methods("greedyprune,divprune:layer=1"), [0.5], 3, oracle=True)
    layers = {(arm.spec.name, arm.pruner().layer) for arm in arms if arm.spec}
    assert layers == {("random", 1), ("random", 3), ("greedyprune", 3), ("divprune", 1), ("evidence", 3)}


def test_a_batch_draws_by_its_seed():
    (random,) = (arm for arm in plan_arms([], [0.5], None, oracle=False) if arm.method == "random")
    assert random.pruner(5) == random.pruner(5) != random.pruner(6)


@pytest.mark.parametrize("methods", ["nope", "greedyprune:nope=1", "greedyprune:keep=0.3", "evidence:nope=1"])
def test_a_wrong_method_is_said_before_anything_runs(methods):
    with pytest.raises(UnknownMethodError):
        plan_arms(parse_methods(methods), [0.5], None, oracle=False)


@pytest.mark.parametrize("keeps", [[], [0.0], [1], [0.5, 1.5], [float("nan")], [-0.1], [-4]])
def test_a_wrong_budget_is_said_before_anything_runs(keeps):
    with pytest.raises(BudgetError):
        plan_arms([], keeps, None, oracle=False)


# -- saved pruners, and budgets as a mean per layer


def test_a_saved_pruner_stands_for_a_method(tmp_path, monkeypatch):
    saved = make("btp", keep=0.3, stages=[(2, 0.5, 0.4), (4, 0.2, 1.0)])
    saved.save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert build("mine", {}) == saved
    assert build("mine", {"rebalance": False}) == dataclasses.replace(saved, rebalance=False)
    arms = plan_arms(parse_methods("mine,mine:query=mean_text"), [0.4], None, oracle=False)
    assert [arm.label for arm in arms][-2:] == ["mine @ 0.4", "mine:query=mean_text @ 0.4"]
    assert arms[-1].pruner() == dataclasses.replace(saved, keep=0.4, query="mean_text")
    with pytest.raises(UnknownMethodError, match="no option tau"):
        build("mine", {"tau": 1})
    with pytest.raises(UnknownMethodError, match="no folder"):
        build("yours", {})


def test_a_mean_budget_costs_every_method_the_same():
    missed = []
    methods = parse_methods("fastv,divprune,btp,fastv:layer=3")
    arms = plan_arms(methods, [0.3], None, oracle=False, config=DEEP, out_of_reach=missed)
    by_label = {arm.label: arm for arm in arms}
    assert by_label["fastv @ 0.3"].pruner().keep == pytest.approx(0.125)  # 2 layers in full and 8 with an eighth
    assert by_label["divprune @ 0.3"].pruner().keep == pytest.approx(0.3)
    assert by_label["btp @ 0.3"].pruner().resolved(DEEP).mean_tokens(10) == pytest.approx(0.3)
    assert by_label["random @ 0.3"].pruner(seed=5).seed == 5
    assert "fastv:layer=3 @ 0.3" not in by_label
    assert [line.partition(":")[0] for line in missed] == ["random", "fastv"]
    assert all(arm.means_layers for arm in arms if arm.spec)
    with pytest.raises(BudgetError, match="on average"):
        plan_arms(methods, [0.3], None, oracle=False, config=DEEP)
    with pytest.raises(BudgetError, match="not the count 49"):
        plan_arms(methods, [49], None, oracle=False, config=DEEP, out_of_reach=missed)


def test_whose_keep_is_a_mean_anyway():
    arms = plan_arms(parse_methods("fastv,btp"), [0.5], None, oracle=False)
    assert [arm.method for arm in arms if arm.means_layers] == ["btp"]


def test_a_count_is_a_budget_too():
    arms = {arm.label: arm for arm in plan_arms(parse_methods("fastv"), [49, 1.0], None, oracle=False)}
    assert list(arms)[1:] == [
        f"{name} @ {keep}" for name in ("downsample", "random:layer=2", "fastv") for keep in ("49", "1.0")
    ]
    assert arms["fastv @ 49"].pruner() == make("fastv", keep=49)
    assert arms["fastv @ 1.0"].pruner() == make("fastv", keep=1.0)
    assert arms["downsample @ 49"].shrink == 49
    with pytest.raises(BudgetError, match="btp.*no count"):
        plan_arms(parse_methods("btp"), [49], None, oracle=False)


def test_published_stages_bring_their_budget():
    arms = plan_arms(parse_methods("btp:variant=paper,btp:variant=default"), [0.5, 0.3], None, oracle=False)
    mine = [arm for arm in arms if arm.method.startswith("btp")]
    assert [arm.label for arm in mine] == [
        "btp:variant=paper",
        "btp:variant=default @ 0.5",
        "btp:variant=default @ 0.3",
    ]
    assert mine[0].pruner() == make("btp", variant="paper")
