"""How methods and budgets are written on a command line."""

import pytest

from foveate import make
from foveate.errors import BudgetError, UnknownMethodError
from foveate.pruners.budget import parse_keep, parse_keeps
from foveate.pruners.spec import MethodSpec, brief, build_with, parse_methods, parse_value


def test_options_belong_to_the_method_before_them():
    assert parse_methods("fastv, greedyprune:layer=0,threshold=0.7,random") == [
        MethodSpec("fastv"),
        MethodSpec("greedyprune", {"layer": 0, "threshold": 0.7}),
        MethodSpec("random"),
    ]


def test_a_list_is_one_value():
    (spec,) = parse_methods("some:layers=[2,4,8],center=true")
    assert spec.options == {"layers": [2, 4, 8], "center": True}
    assert str(spec) == "some:layers=[2,4,8],center=True"


def test_a_pruner_in_brief():
    assert brief(make("greedyprune", keep=0.25)) == "GreedyPrune(keep=0.25)"
    assert brief(make("greedyprune", keep=0.5, layer=0)) == "GreedyPrune(keep=0.5, layer=0)"


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("1.0", 1.0), ("True", True), ("none", None), ("stop", "stop"), ("nan", "nan")]
)
def test_values(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize("text", ["layer=0,greedyprune", "greedyprune:layer", "greedyprune:=3"])
def test_what_is_no_method_list_is_refused(text):
    with pytest.raises(UnknownMethodError):
        parse_methods(text)


def test_a_budget_among_options_is_a_budget():
    (spec, other) = parse_methods("fastv:keep=49,random:keep=1.0,seed=1")
    assert spec.options == {"keep": 49}
    assert other.options == {"keep": 1.0, "seed": 1}
    assert type(other.options["keep"]) is float
    assert parse_methods("btp:keep=none")[0].options == {"keep": None}
    with pytest.raises(BudgetError, match="0.22"):
        parse_methods("fastv:keep=half")


@pytest.mark.parametrize(
    ("text", "keep"), [("0.22", 0.22), (" .5 ", 0.5), ("1.0", 1.0), ("49", 49), ("+49", 49), ("1e-1", 0.1)]
)
def test_a_budget(text, keep):
    assert parse_keep(text) == keep
    assert type(parse_keep(text)) is type(keep)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1", "write 1.0"),
        ("0", "positive"),
        ("-3", "positive"),
        ("49.0", "a count of tokens is an int"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("0.0", "0.0"),
        ("22%", "0.22"),
        ("half", "0.22"),
        ("True", "0.22"),
        ("none", "0.22"),
        ("", "0.22"),
    ],
)
def test_what_is_no_budget_is_refused_with_what_is(text, named):
    with pytest.raises(BudgetError, match=named):
        parse_keep(text)


def test_several_budgets():
    assert parse_keeps("0.5, 49,1.0") == (0.5, 49, 1.0)
    for text in ("", " , "):
        with pytest.raises(BudgetError, match="at least one"):
            parse_keeps(text)
    with pytest.raises(BudgetError, match="ambiguous"):
        parse_keeps("0.5,1")


@pytest.mark.parametrize(
    ("name", "options", "keep", "made"),
    [
        ("fastv", {}, None, {"keep": 0.22}),
        ("fastv", {}, 49, {"keep": 49}),
        ("fastv", {"keep": 0.3}, None, {"keep": 0.3}),
        ("btp", {}, None, {"keep": 0.22}),
        ("btp", {"variant": "default"}, None, {"keep": 0.22, "variant": "default"}),
        ("btp", {"variant": "paper"}, None, {"variant": "paper"}),
        ("btp", {"variant": "paper"}, 0.3, {"variant": "paper", "keep": 0.3}),
        ("glimpseprune", {}, None, {}),
        ("glimpseprune", {}, 0.3, {"keep": 0.3}),
    ],
)
def test_the_usual_budget_is_for_methods_that_have_none(name, options, keep, made):
    assert build_with(name, options, keep, 0.22) == make(name, **made)
