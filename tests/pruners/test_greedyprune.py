"""GreedyPrune's objectives against plain loops, and what it does where there is no attention to read."""

from __future__ import annotations

import dataclasses
import types

import pytest
import torch

from foveate import GreedyPrune
from foveate.errors import BudgetError, UnsupportedModelError
from foveate.families import Grid
from foveate.pruners import PromptRows
from tests.models.build import build, generate, inputs
from tests.pruners.visual_tokens import visual_tokens

GRIDS = [[Grid(4, 5)], [Grid(3, 3)]]


def slow(features, saliency, k: int, floor: float, power: float) -> list[int]:
    """Greedily the largest 2 Σ log q + log det Sim, each set tried in whole."""
    features, saliency = features.double(), saliency.double()
    q = ((saliency - saliency.min()) / (saliency.max() - saliency.min()) + floor) ** power
    unit = features / features.norm(dim=1, keepdim=True)
    alike = unit @ unit.T

    def objective(chosen: list[int]) -> float:
        return float(2 * q[chosen].log().sum() + alike[chosen][:, chosen].logdet())

    chosen: list[int] = []
    while len(chosen) < k:
        rest = [one for one in range(len(features)) if one not in chosen]
        chosen.append(max(rest, key=lambda one: objective([*chosen, one])))
    return sorted(chosen)


def kept(pruner, tokens):
    return [row.nonzero()[:, 0].tolist() for row in pruner.select(tokens) & tokens.valid]


@pytest.mark.parametrize("layer", [0, 4])
@pytest.mark.parametrize(("floor", "power"), [(0.1, 1.0), (0.5, 2.0), (9.0, 0.5)])
def test_it_keeps_the_greatest_volume(layer, floor, power):
    tokens = dataclasses.replace(visual_tokens(GRIDS), layer=layer)
    found = kept(GreedyPrune(keep=5, layer=layer, floor=floor, power=power), tokens)
    for sample, number in enumerate((20, 9)):
        features = tokens.features[sample, :number]
        if layer:
            saliency = tokens.attention[sample, :, 0, :number].mean(0)
        else:
            saliency = torch.cosine_similarity(features, tokens.mean_text[sample], dim=1)
        assert found[sample] == slow(features, saliency, 5, floor, power)


def test_only_what_is_there_counts_for_the_range_of_saliency():
    tokens = visual_tokens(GRIDS)
    filled = tokens.attention.masked_fill(~tokens.valid[:, None, None], -1.0)  # must not become the lowest
    pruner = GreedyPrune(keep=4)
    assert kept(pruner, dataclasses.replace(tokens, attention=filled)) == kept(pruner, tokens)


def test_the_rows_that_it_asks_for():
    rows = PromptRows(torch.tensor([9]), torch.zeros(1, 0, dtype=torch.long), torch.tensor([[7, 8, 9]]))
    for options, wanted in (
        ({}, rows.text),
        ({"query": "last"}, rows.last[:, None]),
        ({"saliency": "cosine"}, None),
        ({"layer": 0}, None),
        ({"keep": 1.0}, None),
        ({"objective": "threshold"}, None),
        ({"objective": "threshold", "saliency": "attention"}, rows.last[:, None]),
        ({"objective": "threshold", "saliency": "attention", "query": "mean_text"}, rows.text),
    ):
        found = GreedyPrune(**options).attention_rows(2, rows)
        assert (found is None) == (wanted is None)
        assert wanted is None or torch.equal(found, wanted)
    assert GreedyPrune().sums_rows(2)
    assert not GreedyPrune(query="last").sums_rows(2)


def test_the_threshold_by_itself_is_the_reviewed_rule():
    told = {"objective": "threshold", "saliency": "cosine", "query": "last", "threshold": 0.9, "fill": "saliency"}
    tokens = visual_tokens(GRIDS)
    assert kept(GreedyPrune(keep=5, objective="threshold"), tokens) == kept(GreedyPrune(keep=5, **told), tokens)


@pytest.mark.parametrize("options", [{"threshold": 0.9}, {"fill": "relax"}, {"center": True}])
def test_an_option_of_the_threshold_means_its_objective(options):
    """As a pruner saved before there were two objectives says."""
    tokens = visual_tokens(GRIDS)
    named = kept(GreedyPrune(keep=5, objective="threshold", **options), tokens)
    assert kept(GreedyPrune(keep=5, **options), tokens) == named
    assert named != kept(GreedyPrune(keep=5), tokens)


def test_auto_is_the_smallest_threshold_that_leaves_enough():
    tokens, rule = visual_tokens(GRIDS), {"objective": "threshold", "keep": 6}
    found = kept(GreedyPrune(threshold="auto", **rule), tokens)
    for sample, number in enumerate((20, 9)):
        unit = torch.nn.functional.normalize(tokens.features[sample, :number].double(), dim=1)
        alike = unit @ unit.T
        order = (unit @ tokens.query[sample].double()).argsort(descending=True)
        for limit in sorted(alike.flatten().tolist()):  # the greedy set changes at these alone
            chosen: list[int] = []
            for one in order.tolist():
                if len(chosen) < 6 and all(alike[one, other] <= limit for other in chosen):
                    chosen.append(one)
            if len(chosen) == 6:
                break
        assert found[sample] == sorted(chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "volume", "threshold": 0.9}, "'volume' makes no use of threshold"),
        ({"objective": "volume", "fill": "stop", "center": True}, "'volume' makes no use of fill, center"),
        ({"objective": "threshold", "floor": 0.2}, "'threshold' makes no use of floor"),
        ({"threshold": 0.9, "power": 2.0}, "'threshold' makes no use of power"),
        ({"threshold": "auto", "fill": "relax"}, "nothing for fill to do"),
        ({"threshold": "best"}, "threshold must be"),
        ({"layer": 0, "saliency": "attention"}, "before layer 0 there is no attention"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(BudgetError, match=message):
        GreedyPrune(**options)


def report(model, pruner):
    with pruner(model) as pruned:
        generate(model, inputs("llava", "one image"), 1)
    return str(pruned.report)


def test_the_report_says_that_no_attention_is_read():
    model = build("llava")
    assert "cosine to the text" in report(model, GreedyPrune(keep=0.3, layer=0))
    assert "cosine to the text" not in report(model, GreedyPrune(keep=0.3))
    assert "cosine to the text" not in report(model, GreedyPrune(keep=0.3, layer=0, objective="threshold"))


def test_behind_a_layer_without_attention_the_cosine_stands_in():
    text = types.SimpleNamespace(num_hidden_layers=3, layer_types=["full_attention", "linear_attention", "conv"])
    config = types.SimpleNamespace(get_text_config=lambda: text)
    for layer, saliency in ((0, None), (1, None), (2, "cosine")):
        assert GreedyPrune(layer=layer).resolved(config).saliency == saliency
    assert GreedyPrune(layer=2).resolved(config).notes(3)
    reading = GreedyPrune(layer=2, saliency="attention")
    assert reading.resolved(config) == reading


def test_attention_that_is_asked_for_is_not_replaced():
    model = build("qwen3_5")
    kinds = model.config.get_text_config().layer_types
    layer = 1 + kinds.index("linear_attention")
    with GreedyPrune(keep=0.3, layer=layer)(model) as pruned:
        assert pruned.report is not None
    with (
        pytest.raises((BudgetError, UnsupportedModelError), match="attention of the layer before"),
        GreedyPrune(keep=0.3, layer=layer, saliency="attention")(model),
    ):
        pass
