"""ApET, ToMe, pooling and the even spread, against their rules worked out token by token."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.pruners.apet import likest_survivor
from tests.models.build import build, decoder, inputs, visual
from tests.pruners.encoder_tokens import best, kept
from tests.pruners.visual_tokens import visual_tokens
from tests.vision_probe import hooked

GRIDS = [[Grid(5, 6)], [Grid(3, 4, row_ends=1), Grid(2, 3)]]
COUNTS = (30, 21)


def cosine(one, other) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


def test_apet_keeps_its_number_of_equal_tokens():
    tokens = visual_tokens(GRIDS)
    same = dataclasses.replace(tokens, features=torch.ones(2, 30, 12).masked_fill(~tokens.valid[..., None], 0))
    keep = foveate.ApET(keep=9, basis=4).select(same).keep
    assert keep.sum(-1).tolist() == [9, 9]
    assert not (keep & ~tokens.valid).any()


@pytest.mark.parametrize(("keep", "basis"), [(12, 10), (9, 3), (4, 10)])
def test_apet(keep, basis):
    tokens = visual_tokens(GRIDS)
    tokens = dataclasses.replace(tokens, features=torch.randn(2, 30, 12).masked_fill(~tokens.valid[..., None], 0))
    found = foveate.ApET(keep=keep, basis=basis).select(tokens)
    assert foveate.ApET(keep=keep, basis=basis, merge=False).select(tokens).into is None
    for sample, number in enumerate(COUNTS):
        rows = tokens.features[sample, :number].double()
        away = (rows - rows.mean(0)).norm(dim=1)
        chosen = [int(away.argmax())]
        while len(chosen) < min(basis, keep):
            chosen.append(
                max(range(number), key=lambda one: min(float((rows[one] - rows[to]).norm()) for to in chosen))
            )
        span = rows[chosen]
        gram = span @ span.T + 1e-5 * torch.eye(len(span), dtype=torch.float64)
        error = [float((row - gram.inverse() @ (span @ row) @ span).norm()) for row in rows]
        chosen += best(error, keep - len(chosen), [one for one in range(number) if one not in chosen])
        assert kept(found.keep, sample) == sorted(chosen)
        for one in set(range(number)) - {*chosen}:
            assert found.into[sample, one] == max(sorted(chosen), key=lambda to, one=one: cosine(rows[one], rows[to]))
    assert (found.weight, found.how) == (None, "average")


def test_without_a_survivor_a_token_goes_nowhere():
    keep = torch.tensor([[False, False, False], [False, True, False]])
    assert likest_survivor(torch.randn(2, 3, 4), keep, 1).tolist() == [[-1, -1, -1], [1, 1, 1]]


@pytest.mark.parametrize("keep", [2, 5, 11, 17])
def test_tome(keep):
    tokens = visual_tokens(GRIDS)
    found = foveate.ToMe(keep=keep).select(tokens)
    for sample, number in enumerate(COUNTS):
        rows = tokens.features[sample].double()
        groups = {one: [one] for one in range(number)}
        order = [*range(number)]
        while len(order) > keep:
            mean = {one: rows[groups[one]].mean(0) for one in order}
            ones, others = order[0::2], order[1::2]
            to = {one: max(others, key=lambda other, one=one: cosine(mean[one], mean[other])) for one in ones}
            alike = {one: cosine(mean[one], mean[to[one]]) for one in ones}
            leave = sorted(ones, key=alike.get, reverse=True)[: len(order) - keep]
            for one in leave:
                groups[to[one]] += groups.pop(one)
            order = [one for one in ones if one not in leave] + others
        assert kept(found.keep, sample) == sorted(groups)
        for root, members in groups.items():
            assert {int(found.into[sample, one]) for one in members} <= {root}


def test_tome_behind_layer_0_compares_keys():
    tokens = visual_tokens(GRIDS)
    keys = torch.randn(2, 2, 30, 5)
    wanted = foveate.ToMe(keep=9).select(dataclasses.replace(tokens, features=keys.mean(1)))
    found = foveate.ToMe(keep=9, layer=2).select(dataclasses.replace(tokens, keys=keys))
    assert torch.equal(found.into, wanted.into)
    assert foveate.ToMe(layer=2).kv(2) == ("keys",)
    assert foveate.ToMe().kv(0) == ()


def test_uniform():
    tokens = visual_tokens(GRIDS)
    keep = foveate.Uniform(keep=9).select(tokens)
    rows, columns = tokens.row[0, keep[0]].tolist(), tokens.column[0, keep[0]].tolist()
    apart = [
        abs(rows[one] - rows[to]) + abs(columns[one] - columns[to]) for one in range(9) for to in range(9) if one != to
    ]
    assert min(apart) >= 2
    assert [int((tokens.grid[1, keep[1]] == grid).sum()) for grid in (0, 1)] == [6, 3]
    full = foveate.Uniform(keep=20).select(tokens)
    assert full.sum(-1).tolist() == [20, 20]
    assert int((tokens.grid[1, full[1]] == -1).sum()) == 2  # of 18 cells and 3 separators


@pytest.mark.parametrize("keep", [1.0, 0.2, 3, 7, 12])
def test_pool(keep):
    """Each average is that of a rectangle; rectangles tile the grid, are as even as can be, and as many as may be."""
    tokens = visual_tokens(GRIDS)
    found = foveate.Pool(keep=keep).select(tokens)
    if keep == 1.0:
        assert found is tokens.valid
        return
    for sample, (number, grids) in enumerate(zip(COUNTS, GRIDS, strict=True)):
        budget = keep if isinstance(keep, int) else round(number * keep)
        assert 0 < int(found.keep[sample].sum()) <= budget
        for place, grid in enumerate(grids):
            on = [one for one in range(number) if tokens.grid[sample, one] == place]
            cells: dict[int, list[tuple[int, int]]] = {}
            for one in on:
                cell = int(tokens.row[sample, one]), int(tokens.column[sample, one])
                cells.setdefault(int(found.into[sample, one]), []).append(cell)
            if cells.keys() == {-1}:
                continue
            sides = set()
            for root, members in cells.items():
                assert found.keep[sample, root]
                high, wide = ({cell[axis] for cell in members} for axis in (0, 1))
                assert len(members) == len(high) * len(wide)
                assert (max(high) - min(high) + 1, max(wide) - min(wide) + 1) == (len(high), len(wide))
                middle = int(tokens.row[sample, root]), int(tokens.column[sample, root])
                assert middle == ((min(high) + max(high)) // 2, (min(wide) + max(wide)) // 2)
                sides.add((len(high), len(wide)))
            for axis in (0, 1):
                lengths = {side[axis] for side in sides}
                assert max(lengths) - min(lengths) <= 1
            if len(grids) == 1:
                most = max(r * min(grid.width, budget // r) for r in range(1, min(grid.height, budget) + 1))
                assert len(cells) == most
        assert all(found.into[sample, one] == -1 for one in range(number) if tokens.grid[sample, one] < 0)


def test_pooled_states_are_averages():
    """What enters layer 0 of the pruned model is the average pooling of what enters it in the dense one."""
    model, batch, seen = build("llava"), inputs("llava", "one image"), []
    norm = decoder(model).layers[0].input_layernorm
    handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad(), hooked(handle):
        model(**batch)
        with foveate.Pool(keep=4)(model):
            model(**batch)
    image = visual(batch)[0].nonzero()[:, 0].tolist()
    wanted = seen[0][0, image].view(2, 2, 2, 2, 64).mean((1, 3)).flatten(0, 1)
    first = image[0]
    torch.testing.assert_close(seen[1][0, first : first + 4], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("basis", [0, True, 2.0])
def test_a_basis_that_makes_no_sense(basis):
    with pytest.raises(BudgetError, match="basis"):
        foveate.ApET(basis=basis)
