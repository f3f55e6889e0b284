"""IVC-Prune against its rule, head by head."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from tests.models.build import build, generate, inputs
from tests.pruners.encoder_tokens import best, kept
from tests.pruners.visual_tokens import visual_tokens

TEXT = (6, 2)
HEADS, WIDTH = 2, 5


def shown():
    tokens = visual_tokens([[Grid(9, 12)], [Grid(3, 4)]])
    number, there = tokens.valid.shape[1], torch.arange(6) < torch.tensor(TEXT)[:, None]
    angle = torch.rand(2, number, 8) * 7
    return dataclasses.replace(
        tokens,
        values=3 * torch.randn(2, HEADS, number, WIDTH).masked_fill(~tokens.valid[:, None, :, None], 0),
        text_values=3 * torch.randn(2, HEADS, 6, WIDTH).masked_fill(~there[:, None, :, None], 0),
        rotary=tuple(one.masked_fill(~tokens.valid[..., None], 0) for one in (angle.cos(), angle.sin())),
    )


@pytest.mark.parametrize("coordinates", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("keep", [2, 5, 11])
def test_it_keeps_coordinates_and_foreground(keep, coordinates):
    tokens = shown()
    found = foveate.IVCPrune(keep=keep, coordinates=coordinates).select(tokens)
    for sample, number in enumerate((108, 12)):
        values = tokens.values[sample, :, :number].double()

        def likeness(row, values=values):
            """To each visual token, mean over heads; the row (HEADS, WIDTH)."""
            total = [0.0] * values.shape[1]
            for head in range(HEADS):
                powers = [math.exp(float(row[head].double() @ value) / WIDTH**0.5) for value in values[head]]
                total = [so_far + one / sum(powers) / HEADS for so_far, one in zip(total, powers, strict=True)]
            return total

        def mean(rows):
            return [sum(column) / len(rows) for column in zip(*rows, strict=True)]

        marks = min(round(coordinates * keep), keep // 2)
        means = [table[sample, :number].double().mean(-1) for table in tokens.rotary]
        chosen = {one for table in means for one in best(table, marks, range(number))}
        text = [likeness(tokens.text_values[sample, :, word]) for word in range(TEXT[sample])]
        seeds = best(mean(text), max(1, round(0.01 * number)), range(number))
        score = mean([*text, *(likeness(values[:, one]) for one in seeds)])
        chosen |= {*[one for one in seeds if one not in chosen][: keep - len(chosen)]}
        chosen |= {*best(score, keep - len(chosen), [one for one in range(number) if one not in chosen])}
        assert kept(found, sample) == sorted(chosen)


def test_the_whole_cache_is_cut_at_half_the_depth():
    model = build("llava")
    with foveate.IVCPrune(keep=0.25)(model) as pruned:
        generate(model, inputs("llava", "one image"), 2)
    (stage,) = pruned.report.stages
    assert stage.layer == 3
    assert pruned.report.kv_share < 0.8
    with foveate.IVCPrune(keep=0.25, compact_cache=False)(model) as less:
        generate(model, inputs("llava", "one image"), 2)
    assert less.report.kv_share > pruned.report.kv_share


@pytest.mark.parametrize("options", [{"coordinates": 0.6}, {"layer": 0}, {"layer": 2.5}, {"keep": 0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        foveate.IVCPrune(**options)


def test_a_model_of_one_layer_has_no_half():
    with pytest.raises(BudgetError, match="two decoder layers"):
        foveate.IVCPrune().layers(1)
