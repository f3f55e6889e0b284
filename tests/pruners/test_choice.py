"""What each method chooses, against its paper's formula in plain Python, and against cases worked out by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
from pathlib import Path
from typing import get_args, get_type_hints
from unittest import mock

import pytest
import torch

import foveate
from foveate import BTP, DivPrune, FastV, GlimpsePrune, GreedyPrune, PyramidDrop, Random, select
from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.pruners import METHODS
from foveate.pruners.btp.method import _share
from foveate.pruners.btp.spread import spread
from foveate.pruners.spec import parse_methods, parse_options
from foveate.select import diversity
from tests.laws import methods
from tests.models.build import build, inputs, pictures
from tests.pruners import oracles
from tests.pruners.eager import expected
from tests.pruners.visual_tokens import visual_tokens

SETTINGS = {
    **{name: pruner for name, pruner in methods.METHODS.items() if type(pruner) in oracles.ORACLES},
    "btp as LLaVA's released file": BTP(
        stages=[(1, 0.5, 0.3, 3.7, 0.5, 0.713, 0.3), (3, 0.25, 0.9, 1.5, 0.5, 0.0, 0.1), (4, 0.1, 1.0, 1.2, 1 / 3)],
        score="logits",
    ),
    "btp as Qwen's released file": BTP(stages=[(1, 0.5, 0.1, 1.2, None), (3, 0.25, 0.4, 1), (4, 0.125, 1.0)]),
    "btp with more than fits": BTP(stages=[(2, 0.3, 0.5, 2.5, None, 1.0, 0.4)]),
    "btp without a start": BTP(stages=[(1, 0.5, 0.0)]),
    "btp without a start, from the outlier": BTP(stages=[(1, 0.5, 0.0)], first="outlier"),
    "divprune from the outlier": DivPrune(keep=0.3, first="outlier"),
    "btp with a front of a quarter": BTP(stages=[(2, 0.4, 0.8, 2.0, 0.25, 0.5)]),
    **{name: methods.FIELD[name] for name in ("greedyprune before layer 0", "greedyprune last row per image")},
    "greedyprune as reviewed": GreedyPrune(keep=0.3, objective="threshold"),
    "greedyprune threshold by attention": GreedyPrune(
        keep=0.4, objective="threshold", threshold=0.2, saliency="attention", query="mean_text"
    ),
    "greedyprune nearly for diversity alone": GreedyPrune(keep=0.3, floor=20.0, power=0.5),
    "fastv per image": FastV(keep=0.3, per="image"),
    "glimpseprune corners": GlimpsePrune(weights=methods.glimpse(), max_keep=0.2, anchors=("tl", "tr", "bl", "br")),
}
# Methods whose rule, worked out token by token, stands in tests of their own, on tensors: tests/pruners/test_….py
ELSEWHERE = {
    **dict.fromkeys(("apet", "pool", "tome", "uniform"), "merging_methods"),
    **dict.fromkeys(("evs", "vidcom2"), "video_methods"),
    **dict.fromkeys(("fastervlm", "hiprune", "holov", "visionzip", "vispruner"), "encoder_methods"),
    **{
        name: name
        for name in (
            "agilepruner",
            "anchorprune",
            "cdpruner",
            "dart",
            "ivcprune",
            "mmtok",
            "ocvtp",
            "prunesid",
            "scope",
            "sparsevlm",
            "v2drop",
            "vlmpruner",
            "vtw",
        )
    },
}
# plain images with other padding in each sample; grids of unequal sizes; separators, which lie on no grid
PLACES = (("llava", "ragged"), ("qwen2_5_vl", "ragged"), ("llava_next", "one image"))
CASES = [
    (name, *place)
    for name, pruner in SETTINGS.items()
    for place in PLACES
    # the oracle reads a vision encoder whose patches are the visual tokens
    if place[0] == "llava" or not pruner.vision_layers(3)
]


def kept(family, batch, pruner, **options):
    """For each stage its layer, and for each sample the positions of the visual tokens that stay."""
    model = build(family)
    with torch.no_grad(), pruner(model) as pruned:
        model(**batch, **options)
    return [(stage.layer, [one.tolist() for one in stage.kept]) for stage in pruned.report.stages]


def test_every_method_has_an_oracle_and_is_tried():
    here = {type(pruner).name for pruner in SETTINGS.values()}
    assert here == {method.name for method in oracles.ORACLES}
    for name in METHODS.keys() - here:
        file = Path(__file__).with_name(f"test_{ELSEWHERE[name]}.py")
        assert METHODS[name].__name__ in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "family", "layout"), CASES, ids=map("-".join, CASES))
def test_a_pruned_model_keeps_what_the_formula_says(name, family, layout):
    batch = inputs(family, layout)
    found = kept(family, batch, SETTINGS[name])
    assert found == expected(SETTINGS[name], family, batch, pictures(family, layout))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["fastv", "greedyprune", "greedyprune relax", "btp", "btp from 0 to nothing"])
def test_an_answer_with_labels_is_not_seen(family, name):
    batch, answer = inputs(family, "ragged"), 2
    end = batch["input_ids"].shape[1] - answer
    labels = batch["input_ids"].clone()
    labels[:, :end] = -100
    found = kept(family, batch, SETTINGS[name], labels=labels)
    assert found == expected(SETTINGS[name], family, batch, pictures(family, "ragged"), end)
    assert found != kept(family, batch, SETTINGS[name])


# -- cases worked out by hand


def shown(grids, features=None, attention=None, **changes):
    """One sample's tokens on these grids, with features (N, D) and attention (heads, N) of its last prompt token."""
    tokens = visual_tokens([grids])
    if features is not None:
        changes["features"] = torch.tensor([features])
    if attention is not None:
        changes["attention"] = torch.tensor([attention])[:, :, None]
    return dataclasses.replace(tokens, **changes)


def places(pruner, tokens):
    return (pruner.select(tokens) & tokens.valid)[0].nonzero()[:, 0].tolist()


ROW = [Grid(1, 4)]


@pytest.mark.parametrize(
    "pruner",
    [FastV(keep=2), PyramidDrop(keep=0.125), BTP(stages=[(4, 0.5, 1.0)]), GlimpsePrune(keep=2)],
    ids=lambda pruner: pruner.name,
)
def test_heads_count_by_their_mean(pruner):
    # by the mean 2 and 3, by the maximum 0 and 1, by the sum of squares 0 and 1
    attention = [[0.9, 0.0, 0.5, 0.5], [0.0, 0.9, 0.5, 0.45]]
    assert places(pruner, shown(ROW, attention=attention)) == [2, 3]


@pytest.mark.parametrize("tenths", range(11))
def test_the_share_of_attention_is_rounded_down(tenths):
    """⌊λk⌋ for every budget of an image of 576 tokens, whatever binary makes of λ."""
    k = torch.arange(577)
    assert _share(tenths / 10, k).tolist() == [tenths * number // 10 for number in range(577)]


def test_less_than_one_place_for_attention_is_none():
    # λk = 0.9 · 2 = 1.8: one place for attention, the other for diversity
    features = [[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [1.0, 0.3], [1.0, 0.4]]
    tokens = shown([Grid(1, 6)], features, [[0.9, 0.8, 0.0, 0.0, 0.0, 0.0]])
    assert places(BTP(stages=[(4, 1 / 3, 0.9, 1.0)]), tokens) == [0, 3]
    assert places(BTP(stages=[(4, 1 / 3, 1.0, 1.0)]), tokens) == [0, 1]


@pytest.mark.parametrize(
    ("k", "cells"), [(1, [2]), (2, [2, 9]), (3, [0, 2, 9]), (4, [0, 2, 4, 9]), (5, [0, 2, 4, 7, 9])]
)
def test_grids_share_the_seed_from_the_middle_of_their_steps(k, cells):
    """Ranks (r + 1/2) / n: 1/4 and 3/4 on a grid of two, 1/16, 3/16 … on one of eight; with r / n, 0 comes first."""
    tokens = shown([Grid(1, 2), Grid(2, 4)])
    assert spread(tokens, torch.tensor([k]))[0].nonzero()[:, 0].tolist() == cells


def test_every_grid_keeps_its_corners():
    tokens = shown([Grid(3, 3), Grid(2, 4)])
    tokens = dataclasses.replace(tokens, attention=torch.zeros_like(tokens.attention))
    tokens.attention[..., 4] = 1
    for corner, cells in {"tl": [0, 9], "tr": [2, 12], "bl": [6, 13], "br": [8, 16]}.items():
        assert places(GlimpsePrune(keep=0.01, anchors=(corner,)), tokens) == sorted([4, *cells])


def test_as_likely_as_the_threshold_is_not_likelier():
    attention = [[0.0, 0.5, 0.75, 1.0]]
    assert places(GlimpsePrune(threshold=0.5), shown(ROW, attention=attention)) == [2, 3]


@pytest.mark.parametrize(("threshold", "stay"), [(0.5, [0, 1]), (0.49, [0])])
def test_as_alike_as_the_threshold_is_not_too_alike(threshold, stay):
    features = [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    tokens = shown(ROW, features, query=torch.tensor([[1.0, 1.0, 1.0, 0.5]]))
    pruner = GreedyPrune(keep=4, objective="threshold", threshold=threshold, fill="stop")
    assert places(pruner, tokens) == stay


def test_padding_takes_no_place_of_a_budget():
    """Budgets count a sample's own tokens before any cut, not those that are left, nor its neighbour's."""
    tokens = visual_tokens([[Grid(2, 5)], [Grid(2, 4)]], lost=2)
    for pruner in (FastV(keep=0.5), DivPrune(keep=0.5), GreedyPrune(keep=0.5), Random(keep=0.5)):
        assert (pruner.select(tokens) & tokens.valid).sum(-1).tolist() == [5, 4]


def test_options_have_names():
    """`FastV(0.3)` could mean anything."""
    for method in METHODS.values():
        kinds = {parameter.kind for parameter in inspect.signature(method).parameters.values()}
        assert kinds == {inspect.Parameter.KEYWORD_ONLY}, method


def test_max_min_by_its_definition_in_the_loop_that_small_inputs_take():
    generator = torch.Generator().manual_seed(3)
    for number, k in ((1, 1), (3, 1), (5, 3), (9, 9), (17, 6), (30, 12)):
        features = torch.randn(1, number, 6, generator=generator, dtype=torch.float64)
        start = torch.zeros(1, number, dtype=torch.bool)
        for begin in ((number // 2,), (0, number - 1)):
            start.zero_()[0, list(begin)] = True
            with mock.patch.object(diversity, "_loop", wraps=diversity._loop) as loop:
                keep = select.max_min_diversity(features, k, start)
            assert loop.called
            expected_set = oracles.farthest(features[0].tolist(), k, begin)
            assert set(keep[0].nonzero()[:, 0].tolist()) == expected_set, (number, k, begin)


# -- options as they are written and saved

# Values that are no defaults; other options are numbers, switches and names, which `with_other` changes by itself.
OTHERS = {
    "keep": 0.3,
    "per": "image",
    "threshold": 0.25,
    "query": "mean_text",
    "fill": "relax",
    "objective": "volume",
    "saliency": "cosine",
    "variant": "default",
    "stages": ((2, 0.5, 0.5, 1.5, None, 0.75, 0.125), (4, 0.25)),
    "final": "keep",
    "harmless": 9,
    "depth": 12,
    "attention": 0.75,
    "score": "logits",
    "distance": "euclidean",
    "first": "outlier",
    "max_keep": 0.125,
    "anchors": ("tl", "br"),
}
OPTIONS = [
    (name, field.name) for name, method in METHODS.items() for field in dataclasses.fields(method) if field.metadata
]


def with_other(name, option):
    """A method with one option changed to something that it takes."""
    default = getattr(foveate.make(name), option)
    others = [OTHERS[option]] if option in OTHERS else []
    if isinstance(default, bool):
        others += [not default]
    elif isinstance(default, (int, float)):
        others += [default + 1, default / 2]
    elif default is None:
        others += [1, 0.5]
    others += get_args(get_type_hints(METHODS[name])[option])
    for value in others:
        with contextlib.suppress(BudgetError):
            pruner = foveate.make(name, **{option: value})
            if getattr(pruner, option) != default:
                return pruner
    raise AssertionError(f"OTHERS has nothing for {name}'s {option}")


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_is_saved(name, option, tmp_path):
    pruner = with_other(name, option)
    assert getattr(pruner, option) != getattr(foveate.make(name), option)
    pruner.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["options"]
    assert set(written) == {option for method, option in OPTIONS if method == name}
    loaded = foveate.load(tmp_path)
    assert loaded == pruner
    assert getattr(loaded, option) == getattr(pruner, option)


@pytest.mark.parametrize("option", sorted({option for _, option in OPTIONS}))
def test_dashes_in_the_name_of_an_option(option):
    dashed = option.replace("_", "-")
    assert parse_options([f"{dashed}=0.5"]) == {option: 0.5}
    assert parse_methods(f"some:{dashed}=0.5,other")[0].options == {option: 0.5}
