"""V2Drop's stages, and which tokens they keep."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from tests.models.build import build, generate, inputs
from tests.pruners.encoder_tokens import kept
from tests.pruners.visual_tokens import visual_tokens


def test_stages():
    stages = foveate.V2Drop(keep=0.36).schedule(28)
    assert [stage.layer for stage in stages] == [3, 16, 22]
    assert stages[0].keep == 2 * stages[1].keep
    assert stages[2].keep == 0
    assert (3 + 13 * stages[0].keep + 6 * stages[1].keep) / 28 == pytest.approx(0.36)
    assert [stage.keep for stage in foveate.V2Drop().schedule(28)] == [0.5, 0.25, 0]
    assert [stage.layer for stage in foveate.V2Drop(keep=0.5, drop=False).schedule(28)] == [3, 16]


def test_it_keeps_the_largest_changes():
    tokens = visual_tokens([[Grid(5, 4)], [Grid(3, 3)]], lost=2)
    tokens = dataclasses.replace(tokens, layer=3, previous=torch.randn_like(tokens.features))
    pruner = dataclasses.replace(foveate.V2Drop(keep=0.36), depth=28)
    keep = pruner.select(tokens)
    share = pruner.schedule(28)[0].keep
    for sample, (dense, number) in enumerate(((20, 20), (9, 7))):
        change = [
            sum(float(now - then) ** 2 for now, then in zip(*rows, strict=True))
            for rows in zip(tokens.features[sample, :number], tokens.previous[sample, :number], strict=True)
        ]
        wanted = sorted(range(number), key=lambda one, change=change: -change[one])[: round(share * dense)]
        assert kept(keep, sample) == sorted(wanted)
    assert not pruner.select(dataclasses.replace(tokens, layer=22)).any()


def test_the_change_is_that_of_the_layer_before():
    """Kept before layer 1 is what layer 0 of the dense model changes most."""
    model, batch = build("llava"), inputs("llava", "one image")
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    with foveate.V2Drop(keep=0.4)(model) as pruned:
        generate(model, batch, 1)
    stage = pruned.report.stages[0]
    change = (states[1] - states[0])[0].norm(dim=-1)
    image = (batch["input_ids"][0] == batch["input_ids"][0].mode().values).nonzero()[:, 0]
    wanted = image[change[image].topk(len(stage.kept[0])).indices].sort().values
    assert stage.layer == 1
    assert stage.kept[0].tolist() == wanted.tolist()


@pytest.mark.parametrize(("keep", "depth"), [(0.05, 28), (0.35, 3)])
def test_what_cannot_be_reached(keep, depth):
    with pytest.raises(BudgetError, match="v2drop"):
        foveate.V2Drop(keep=keep).layers(depth)
