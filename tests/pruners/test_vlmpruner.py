"""VLM-Pruner against its rule, token by token."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import foveate
from foveate.engine.cut import merge
from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.pruners import vlmpruner
from tests.pruners.encoder_tokens import best, kept
from tests.pruners.visual_tokens import visual_tokens

GRIDS = [[Grid(6, 9)], [Grid(3, 4, row_ends=1), Grid(2, 3)]]
COUNTS = (54, 21)
CHANNELS = 5


def shown():
    tokens = visual_tokens(GRIDS)
    return dataclasses.replace(tokens, keys=torch.randn(2, 2, 54, 5).masked_fill(~tokens.valid[:, None, :, None], 0))


def diagonals(tokens, sample: int, one: int, to: int) -> float:
    """Distance on the grid, in diagonals of it."""
    grid = int(tokens.grid[sample, one])
    if grid < 0 or grid != int(tokens.grid[sample, to]):
        return 1.0
    down = int(tokens.row[sample, one] - tokens.row[sample, to])
    across = int(tokens.column[sample, one] - tokens.column[sample, to])
    sides = GRIDS[sample][grid]
    return (down**2 + across**2) ** 0.5 / (sides.height**2 + sides.width**2) ** 0.5


@pytest.mark.parametrize(
    ("threshold", "batch", "pivots", "alike"),
    [(0.8, 16, 4, False), (0.1, 3, 4, False), (-0.3, 4, 1, False), (0.4, 100, 2, False), (0.4, 100, 2, True)],
)
@pytest.mark.parametrize("keep", [2, 9, 20])
def test_it_goes_outward_from_pivots(keep, threshold, batch, pivots, alike, monkeypatch):
    monkeypatch.setattr(vlmpruner, "CHANNELS", CHANNELS)
    tokens = shown()
    if alike:  # ties by the dozen, which go to the first
        tokens = dataclasses.replace(tokens, features=tokens.features[:, :1].expand_as(tokens.features))
    found = foveate.VLMPruner(keep=keep, threshold=threshold, batch=batch, pivots=pivots).select(tokens)
    hidden = merge(tokens.features, torch.arange(54).expand(2, -1), found.keep, tokens.valid, found)
    for sample, number in enumerate(COUNTS):
        everyone = range(number)
        keys = tokens.keys[sample].transpose(0, 1).flatten(1).double()
        chosen = best(keys.abs().sum(-1), 1, everyone)
        while len(chosen) < min(pivots, keep):
            far = {one: min(float((keys[one] - keys[to]).norm()) for to in chosen) for one in everyone}
            chosen += best(far, 1, [one for one in everyone if one not in chosen])
        states = tokens.features[sample, :number].double()
        channels = best(states.var(0), CHANNELS, range(states.shape[1]))

        rows = torch.nn.functional.normalize(states[:, channels], dim=-1)

        alike = (rows @ rows.T).tolist()

        def cosine(one, to, alike=alike):
            return alike[one][to]

        def likeness(one, sample=sample, chosen=chosen, cosine=cosine):
            near = min(diagonals(tokens, sample, one, to) for to in chosen)
            return round(max(cosine(one, to) * (1 + 0.5 * near) for to in chosen), 6)  # ties without rounding

        for limit in itertools.count(threshold, 0.1):
            if len(chosen) == keep:
                break
            order = sorted((one for one in everyone if one not in chosen), key=likeness)
            for start in range(0, len(order), batch):
                before = len(chosen)
                worth = {one: likeness(one) for one in order[start : start + batch]}
                fits = sorted((one for one in worth if worth[one] < limit), key=worth.get)
                chosen += fits[: keep - len(chosen)]
                if (not start and len(chosen) == before) or len(chosen) == keep:
                    break
        assert kept(found.keep, sample) == sorted(chosen)
        for survivor in chosen:
            goes = {
                one: max(0.0, cosine(one, survivor))
                for one in everyone
                if one not in chosen and max(sorted(chosen), key=lambda to, one=one: cosine(one, to)) == survivor
            }
            expected = states[survivor]
            if sum(goes.values()) > 0:
                mean = sum(weight * states[one] for one, weight in goes.items()) / sum(goes.values())
                expected = 0.3 * expected + 0.7 * mean
            torch.testing.assert_close(hidden[sample, survivor].double(), expected, atol=1e-5, rtol=1e-4)


def test_equal_tokens_are_kept_up_to_the_budget():
    tokens = shown()
    flat = torch.ones_like(tokens.features).masked_fill(~tokens.valid[..., None], 0)
    tokens = dataclasses.replace(tokens, features=flat, keys=torch.ones_like(tokens.keys))
    found = foveate.VLMPruner(keep=9, merge=False).select(tokens)
    assert found.keep.sum(-1).tolist() == [9, 9]
    assert found.into is None
    nothing = dataclasses.replace(tokens, features=flat * torch.nan)
    assert foveate.VLMPruner(keep=9).select(nothing).keep.sum(-1).tolist() == [9, 9]


@pytest.mark.parametrize("options", [{"pivots": 0}, {"threshold": 3.0}, {"batch": 0}, {"layer": 0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        foveate.VLMPruner(**options)
