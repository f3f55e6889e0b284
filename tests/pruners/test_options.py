"""Options: what makes no sense is refused with its name; what makes sense survives a round trip through a folder."""

from __future__ import annotations

import dataclasses
import json
import types
import typing

import numpy as np
import pytest
import torch

import foveate
from foveate import FastV, GreedyPrune, Random
from foveate.errors import BudgetError, ModelNotReachable, UnknownMethodError
from foveate.pruners import METHODS
from foveate.pruners.btp.stages import BTPStage
from foveate.pruners.budget import tokens_to_keep
from foveate.pruners.options import INT64, fields_of, option
from foveate.pruners.spec import build, parse_methods
from foveate.testing.uneven import Uneven

# every field of every method: its class, its name, its type without None, and its range
FIELDS = [
    (owner, name, set(typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)) - {type(None)}, limits)
    for owner in (*METHODS.values(), Uneven, BTPStage)
    for name, (kind, limits) in fields_of(owner).items()
]
NEEDED = {BTPStage: {"layer": 3, "keep": 0.5}}


def made(owner, **options):
    return owner(**{**NEEDED.get(owner, {}), **options})


def fields(*kinds):
    """Those of a type, as parameters."""
    found = [(owner, name, limits) for owner, name, types_, limits in FIELDS if types_ & set(kinds)]
    return pytest.mark.parametrize(
        ("owner", "name", "limits"), found, ids=[f"{owner.__name__}.{name}" for owner, name, _ in found]
    )


@pytest.mark.parametrize("keep", [0, 1, 0.0, 1.5, -1, -0.1, float("nan"), float("inf"), "0.5", None, True, 1j])
@pytest.mark.parametrize("method", foveate.pruners.METHODS)
def test_keep_that_makes_no_sense(keep, method):
    if method in ("btp", "glimpseprune", "sparsevlm", "v2drop", "vtw") and keep is None:
        assert foveate.make(method, keep=keep).keep is None  # the method's own budget
        return
    with pytest.raises(BudgetError, match="keep"):
        foveate.make(method, keep=keep)


@pytest.mark.parametrize(
    "options",
    [
        {"layer": -1},
        {"layer": 1.5},
        {"layer": "2"},
        {"per": "batch"},
        {"threshold": float("nan")},
        {"threshold": "0.9"},
        {"threshold": -2},
        {"fill": "all"},
        {"query": "first"},
        {"objective": "both"},
        {"saliency": "norm"},
        {"floor": 0.0},
        {"power": 0},
    ],
)
def test_option_that_makes_no_sense(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        GreedyPrune(**options)


def test_attention_before_the_first_layer():
    with pytest.raises(BudgetError, match="at least 1"):
        FastV(layer=0)


def test_unknown_method_and_option():
    with pytest.raises(foveate.errors.UnknownMethodError, match="fastv.*greedyprune"):
        foveate.make("slowv")
    with pytest.raises(foveate.errors.UnknownMethodError, match="threshold"):
        foveate.make("greedyprune", tau=0.9)


@pytest.mark.parametrize("seed", [1.5, "1", True])
def test_seed_that_makes_no_sense(seed):
    with pytest.raises(BudgetError, match="seed"):
        Random(seed=seed)


def test_whole_tokens():
    dense = torch.tensor([0, 1, 16, 576])
    assert tokens_to_keep(0.22, dense).tolist() == [0, 1, 4, 127]
    assert tokens_to_keep(0.001, dense).tolist() == [0, 1, 1, 1]
    assert tokens_to_keep(100, dense).tolist() == [0, 1, 16, 100]
    assert tokens_to_keep(1.0, dense).tolist() == dense.tolist()


def test_every_field_has_a_type():
    assert all(kind is not typing.Any for _, _, kinds, _ in FIELDS for kind in kinds)
    assert len(FIELDS) > 50


KINDS = {float: (np.float64, np.float32, np.array, torch.tensor), int: (np.int64, np.uint8, np.array, torch.tensor)}


@fields(int, float)
def test_numbers_of_numpy_and_tensors_are_numbers(owner, name, limits, tmp_path):
    taken = 0
    for number in (0.5, 1.0, 0, 3):
        try:
            expected = made(owner, **{name: number})
        except BudgetError:
            for kind in KINDS[type(number)]:
                with pytest.raises(BudgetError, match=name):
                    made(owner, **{name: kind(number)})
            continue
        taken += 1
        for kind in KINDS[type(number)]:
            pruner = made(owner, **{name: kind(number)})
            assert type(getattr(pruner, name)) is type(getattr(expected, name)) in (int, float)
            assert pruner == expected
            assert hash(pruner) == hash(expected)
        if owner in METHODS.values():
            pruner.save_pretrained(tmp_path)
            assert foveate.load(tmp_path) == expected
    assert taken


@fields(int, float)
def test_numbers_out_of_range(owner, name, limits):
    wrong = [
        "3",
        True,
        [3],
        np.array([1, 2]),
        torch.tensor([1, 2]),
        1j,
        float("nan"),
        float("-inf"),
        -(10**400),
        10**400,
    ]
    for end in (limits.at_least, limits.at_most):
        wrong += [] if end is None else [end + (1 if end is limits.at_most else -1)]
    wrong += [end for end in (limits.over, limits.under) if end is not None]
    for value in wrong:
        with pytest.raises(BudgetError, match=f"{name}|keep"):
            made(owner, **{name: value})
    kinds = next(kinds for one, of, kinds, _ in FIELDS if (one, of) == (owner, name))
    if kinds == {int}:
        for value in (1.5, 2.0, limits.at_most + 1 if limits.at_most else INT64):
            with pytest.raises(BudgetError, match=f"{name} must be an integer"):
                made(owner, **{name: value})


@fields(bool)
@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("YES", True), ("1", True), ("false", False), (" no ", False), ("0", False), ("True", True)],
)
def test_text_that_means_a_boolean(owner, name, limits, text, value, tmp_path):
    expected = made(owner, **{name: value})
    assert getattr(expected, name) is value
    assert made(owner, **{name: text}) == expected
    if owner not in METHODS.values():
        return
    (spec,) = parse_methods(f"{owner.name}:{name.replace('_', '-')}={text}")
    assert build(spec.name, spec.options) == expected
    for written in (text, int(value)):
        (tmp_path / "config.json").write_text(json.dumps({"method": owner.name, "options": {name: written}}))
        assert foveate.load(tmp_path) == expected
    for given in (np.bool_(value), torch.tensor(value), np.array(value), int(value)):
        assert type(getattr(made(owner, **{name: given}), name)) is bool
        assert made(owner, **{name: given}) == expected


@fields(bool)
@pytest.mark.parametrize("value", ["", "maybe", "on", "2", 2, 0.0, None, [], torch.tensor([True, False])], ids=str)
def test_what_means_no_boolean(owner, name, limits, value):
    with pytest.raises(BudgetError, match=f"{name} must be true or false"):
        made(owner, **{name: value})


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, name, _, _ in FIELDS])
def test_no_field_takes_anything(owner, name):
    for value in (object(), {"a": 1}, ["nosuch"], "no such thing"):
        with pytest.raises(BudgetError, match=f"{name}|no stage"):
            made(owner, **{name: value})


def test_anchors_as_text():
    (spec,) = parse_methods("glimpseprune:anchors=(tl,br)")
    assert build(spec.name, spec.options).anchors == ("tl", "br")
    with pytest.raises(BudgetError, match="anchors must be several, each one of tl, "):
        foveate.GlimpsePrune(anchors=3)


def test_a_field_redeclared_without_its_range_keeps_it():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(FastV):
        keep: float = 0.4
        seed: int = option(0, "a seed", at_least=0)
        other: Elsewhere = None  # noqa: F821  # type: ignore  # a type that is not to be resolved is not checked

    assert Mine(other="x", seed=np.int64(3)).seed == 3
    with pytest.raises(BudgetError, match="keep"):
        Mine(keep=2.0)
    with pytest.raises(BudgetError, match="fastv: seed must be an integer of at least 0, got -1"):
        Mine(seed=-1)


def test_pruners_are_plain_data():
    pruner = GreedyPrune(keep=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pruner.keep = 0.1
    with pytest.raises(BudgetError):
        dataclasses.replace(pruner, keep=2.0)
    assert "keep=0.5" in repr(pruner)


@pytest.mark.parametrize("method", foveate.pruners.METHODS)
def test_save_and_load(method, tmp_path):
    pruner = foveate.make(method, keep=0.3, compact_cache=True)
    pruner.save_pretrained(tmp_path / "mine")
    assert foveate.load(tmp_path / "mine") == pruner


def test_load_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotReachable, match="no folder"):
        foveate.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BudgetError, match="not a pruner's config"):
        foveate.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"method": "slowv", "options": {}}))
    with pytest.raises(UnknownMethodError, match="slowv"):
        foveate.load(tmp_path)


def test_whole_numbers_are_those_that_a_tensor_can_hold():
    assert foveate.FastV(min_visual=2**63 - 1).min_visual == 2**63 - 1
    with pytest.raises(BudgetError, match="min_visual"):
        foveate.FastV(min_visual=2**63)
