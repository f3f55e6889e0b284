"""PruneSID against its rule, group by group."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.pruners.prunesid import principal, shared_out
from tests.pruners.encoder_tokens import best, encoder_tokens, kept

WIDTH = 24


def shown():
    """Tokens whose principal directions are far from one another in size."""
    tokens = encoder_tokens([[Grid(9, 12)], [Grid(5, 8)]])
    draw = np.random.default_rng(3)
    outputs = torch.zeros(2, 108, WIDTH)
    for sample, number in enumerate((108, 40)):
        left, right = (
            np.linalg.qr(draw.standard_normal((number, 20)))[0],
            np.linalg.qr(draw.standard_normal((WIDTH, 20)))[0],
        )
        made = left * 0.6 ** np.arange(20) @ right.T
        made = 0.5 + 0.4 * made / np.abs(made).max()
        outputs[sample, :number] = torch.from_numpy(np.log(made / (1 - made)))
    return dataclasses.replace(tokens, vision=(outputs,))


def groups_of(outputs: torch.Tensor, number: int) -> list[int]:
    """The principal direction of each token, by numpy's singular values."""
    rows = (1 / (1 + np.exp(-outputs.double().numpy()))).T
    *_, right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return np.abs(right[:number]).argmax(0).tolist()


@pytest.mark.parametrize("strictness", [0.05, 1.0, 6.0])
@pytest.mark.parametrize(("keep", "group"), [(5, 4), (16, 4), (31, 4), (30, 10), (36, 12)])
def test_it_keeps_some_of_each_group(keep, group, strictness):
    tokens = shown()
    found = foveate.PruneSID(keep=keep, group=group, strictness=strictness).select(tokens)
    for sample, number in enumerate((108, 40)):
        outputs, attention = tokens.vision[0][sample, :number], tokens.class_received[0][sample].double()
        unit = torch.nn.functional.normalize(outputs.double(), dim=-1)
        cosine = (unit @ unit.T).tolist()
        pairs = [cosine[one][to] for one in range(number) for to in range(one)]
        limit = strictness * keep / 32 * sum(pairs) / len(pairs)
        names = groups_of(outputs, max(1, keep // group))
        members = [[one for one in range(number) if names[one] == name] for name in range(max(1, keep // group))]
        free = []
        for mine in members:
            stay: list[int] = []
            for one in best(attention, len(mine), mine):
                if all(cosine[one][to] <= limit for to in stay):
                    stay.append(one)
            free.append(stay)
        caps = [min(5 * math.ceil(keep / 64), len(mine), len(stay)) for mine, stay in zip(members, free, strict=True)]
        while sum(caps) < keep:
            caps = [min(cap + 1, len(mine)) for cap, mine in zip(caps, members, strict=True)]
        places = [min(1, len(mine)) for mine in members]
        others, until = keep - sum(places), 0
        for name in range(len(free)):
            total = round(others * sum(map(len, free[: name + 1])) / sum(map(len, free)))
            places[name] = min(places[name] + total - until, caps[name])
            until = total
        for name in sorted(range(len(free)), key=lambda name: -len(free[name])):
            places[name] += min(caps[name] - places[name], keep - sum(places))
        chosen = []
        for mine, stay, some in zip(members, free, places, strict=True):
            chosen += (stay + [one for one in best(attention, len(mine), mine) if one not in stay])[:some]
        assert kept(found, sample) == sorted(chosen)
        assert len(chosen) == keep


def test_directions_are_those_of_the_sample_alone():
    tokens = shown()
    number = torch.tensor([9, 4])
    together = principal(tokens.vision[0], number, 9, tokens.valid)
    alone = principal(tokens.vision[0][1:, :40], number[1:], 4, tokens.valid[1:, :40])
    assert together[1, :40].tolist() == alone[0].tolist() == groups_of(tokens.vision[0][1, :40], 4)


def test_every_budget_is_shared_out_to_the_last_place():
    draw = np.random.default_rng(0)
    for _ in range(60):
        size = torch.from_numpy(draw.integers(0, 30, (3, 7)))
        survivors = torch.minimum(size, torch.from_numpy(draw.integers(1, 30, (3, 7))))
        places = torch.from_numpy(draw.integers(7, 60, (3, 1))).minimum(size.sum(-1, keepdim=True))
        places = places.maximum(size.clamp(max=1).sum(-1, keepdim=True))
        found = shared_out(size, survivors, places)
        assert torch.equal(found.sum(-1, keepdim=True), places)
        assert (found <= size).all()
        assert (found >= size.clamp(max=1)).all()


def test_alike_tokens_and_no_numbers_still_fill_the_budget():
    tokens = shown()
    for outputs in (torch.ones_like(tokens.vision[0]), torch.full_like(tokens.vision[0], torch.nan)):
        found = foveate.PruneSID(keep=16).select(dataclasses.replace(tokens, vision=(outputs,)))
        assert found.sum(-1).tolist() == [16, 16]


@pytest.mark.parametrize("options", [{"group": 0}, {"strictness": 0.0}, {"group": 2.5}])
def test_options_that_make_no_sense(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        foveate.PruneSID(**options)


def test_features_of_one_channel_have_one_group():
    tokens = encoder_tokens([[Grid(3, 4)], [Grid(2, 5)]])
    tokens = dataclasses.replace(tokens, vision=(tokens.vision[0][..., :1],))
    assert foveate.PruneSID(keep=6).select(tokens).sum(-1).tolist() == [6, 6]
