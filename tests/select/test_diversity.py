from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from foveate import select
from foveate.select import diversity, isolated
from foveate.select import diversity as farthest
from foveate.select import lazy_greedy as lazy
from foveate.select.cosine import unit_rows
from tests.select import reference
from tests.select.cases import Case, continuous, sets, tied

PLAIN = st.booleans()
FIRST = st.sampled_from(("published", "outlier"))


def choose(
    case: Case, plain: bool, crowd: int = 64, ready: int = 16, chunk: int = 256, first: str = "published"
) -> Tensor:
    how = diversity._one_by_one if plain else diversity._lazily
    with (
        mock.patch.object(farthest, "WORTH", 0),
        mock.patch.object(diversity, "_lazily", how),
        mock.patch.object(lazy, "CROWD", crowd),
        mock.patch.object(lazy, "READY", ready),
        mock.patch.object(lazy, "CHUNK", chunk),
        mock.patch.object(diversity, "CHUNK", chunk),
        mock.patch.object(farthest, "CHUNK", chunk),
        mock.patch.object(isolated, "CHUNK", min(chunk, 3)),
        mock.patch.object(isolated, "BLOCK", min(chunk, 5)),
        mock.patch.object(isolated, "FEW", ready),
    ):
        return select.max_min_diversity(case.features, case.k, case.start, case.valid, first)


@given(tied(), PLAIN, st.sampled_from((1, 3, 128)), st.sampled_from((1, 2, 64)), st.sampled_from((1, 256)))
def test_agrees_with_the_definition(case: Case, plain: bool, crowd: int, ready: int, chunk: int) -> None:
    assert sets(choose(case, plain, crowd, ready, chunk)) == [
        reference.max_min_diversity(features, k, start, valid) for features, _, k, start, valid in case.rows()
    ]


@given(continuous(), PLAIN, st.sampled_from((2, 5, 128)), FIRST)
def test_every_pick_is_the_farthest(case: Case, plain: bool, crowd: int, first: str) -> None:
    assume(all(clear(row) for row in case.rows()))  # no near ties, which rounding decides
    assert sets(choose(case, plain, crowd, first=first)) == [
        reference.max_min_diversity(features, k, start, valid, first) for features, _, k, start, valid in case.rows()
    ]


def clear(row: tuple[list[list[float]], list[float], int, list[bool], list[bool]]) -> bool:
    """No two pairs of the row have nearly the same cosine, nor two tokens to the mean."""
    unit = unit_rows(torch.tensor(row[0], dtype=torch.float64))
    mean = unit[torch.tensor(row[4])].sum(0)
    near = unit @ torch.nn.functional.normalize(mean, dim=0)
    pairs = (unit @ unit.T)[tuple(torch.triu_indices(len(unit), len(unit), 1))]
    return all(bool((values.sort().values.diff() > 1e-6).all()) for values in (near, pairs))


@pytest.mark.parametrize("many", [1, 2048])
def test_both_forms_agree_on_many_tokens(many: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 1000, 24, generator=generator, dtype=torch.float64)
    k = torch.tensor([300, 170])
    with mock.patch.object(farthest, "WORTH", 0), mock.patch.object(lazy, "MANY", many):
        lazily = select.max_min_diversity(features, k)
    assert torch.equal(select.max_min_diversity(features, k), lazily)  # few enough for the loop
    with mock.patch.object(diversity, "_lazily", diversity._one_by_one):
        assert torch.equal(select.max_min_diversity(features, k), lazily)
    assert lazily.sum(-1).tolist() == [300, 170]


@given(tied())
def test_reaches_the_budget_exactly(case: Case) -> None:
    keep = choose(case, plain=False)
    assert torch.equal(keep.sum(-1), torch.minimum(case.k, case.valid.sum(-1)))
    assert not (keep & ~case.valid).any()


def test_continues_from_its_own_beginning() -> None:
    features = torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(1))
    first = select.max_min_diversity(features, 20)
    assert torch.equal(select.max_min_diversity(features, 60, start=first), select.max_min_diversity(features, 60))


def test_a_larger_budget_only_adds() -> None:
    features = torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(2))
    small, large = (select.max_min_diversity(features, k) for k in (30, 31))
    assert not (small & ~large).any()
    assert (large.sum(-1) == 31).all()


def test_a_start_set_over_the_budget_is_cut_in_order() -> None:
    start = torch.tensor([[False, True, True, False, True]])
    keep = select.max_min_diversity(torch.randn(1, 5, 3), 2, start)
    assert keep.tolist() == [[False, True, True, False, False]]


def test_first_pick() -> None:
    # two of a kind are farthest from the mean, and the one between them and the others has no one near
    features = torch.tensor([[[1.0, 0.1], [1, 0], [0, 1], [0, 1.1], [0.7, 0.7], [1, 0.2]]])
    assert sets(select.max_min_diversity(features, 1)) == [{4}]
    assert sets(select.max_min_diversity(features, 1, first="outlier")) == [{2}]
    with pytest.raises(ValueError, match="first must be one of published, outlier, got 'mean'"):
        select.max_min_diversity(features, 1, first="mean")


def published(features: Tensor, k: int) -> list[int]:
    """DivPrune's greedy as published, on a matrix of distances: all pairs for the first pick, rows after it."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    distance = 1 - unit @ unit.T
    # not to the last bit symmetric, which would decide between two tokens that are each other's nearest
    distance = (distance + distance.T) / 2
    picks: list[int] = []
    while len(picks) < k:
        if not picks:
            score = distance.fill_diagonal_(torch.inf).amin(0)
        else:
            score = distance[picks].amin(0)
            score[picks] = -torch.inf
        picks.append(int(score.argmax()))
    return picks


def problems(number: int) -> Iterator[tuple[Tensor, int]]:
    """Random ones of several kinds, every third with ties: entries of 1 and -1, whose cosines are exact in binary."""
    for seed in range(number):
        generator = torch.Generator().manual_seed(seed)
        count, k = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((2, 90), (1, 30)))
        if seed % 3 == 0:
            yield torch.randint(0, 2, (count, 16), generator=generator).double() * 2 - 1, k
        else:
            features = torch.randn(count, 24, generator=generator, dtype=torch.float64)
            # random directions, or a walk of small steps, as neighbours in an image are alike
            yield (features.cumsum(0) + 3 if seed % 3 == 1 else features), k


@pytest.mark.parametrize("plain", [False, True])
def test_a_thousand_problems_as_published(plain: bool) -> None:
    how = diversity._one_by_one if plain else diversity._lazily
    agree = 0
    for features, k in problems(1000):
        k = min(k, len(features))
        with (
            mock.patch.object(diversity, "_lazily", how),
            mock.patch.multiple(isolated, CHUNK=8, BLOCK=16, FEW=2),
        ):
            keep = select.max_min_diversity(features[None], k)
            other = select.max_min_diversity(features[None], k, first="outlier")
        assert sets(keep) == [set(published(features, k))]
        agree += torch.equal(keep, other)
    assert agree < 500  # where it begins matters


def test_clusters_are_each_visited_before_any_is_visited_twice() -> None:
    generator = torch.Generator().manual_seed(4)
    centres = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q[:10]
    which = torch.randint(0, 10, (400,), generator=generator)
    which[:10] = torch.arange(10)
    features = centres[which] + 0.01 * torch.randn(400, 16, generator=generator)
    keep = select.max_min_diversity(features[None], 10)[0]
    assert which[keep].sort().values.tolist() == list(range(10))


def test_batch_equals_singles() -> None:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(3, 400, 12, generator=generator)
    lengths, k = (400, 210, 30), torch.tensor([70, 100, 50])
    valid = torch.arange(400) < torch.tensor(lengths)[:, None]
    keep = select.max_min_diversity(features, k, valid=valid)
    for row, length in enumerate(lengths):
        alone = select.max_min_diversity(features[row : row + 1, :length], int(k[row]))
        assert torch.equal(alone[0], keep[row, :length])


def test_follows_a_permutation_and_ignores_lengths() -> None:
    generator = torch.Generator().manual_seed(6)
    features = torch.randn(1, 300, 12, generator=generator)
    order = torch.randperm(300, generator=generator)
    keep = select.max_min_diversity(features, 50)
    assert torch.equal(select.max_min_diversity(features[:, order], 50), keep[:, order])
    scale = 2.0 ** torch.randint(-9, 9, (1, 300, 1), generator=generator)
    assert torch.equal(select.max_min_diversity(features * scale, 50), keep)


def test_halves_are_compared_in_single_precision() -> None:
    features = torch.randn(1, 500, 64, generator=torch.Generator().manual_seed(7)).bfloat16()
    keep = select.max_min_diversity(features, 100)
    assert torch.equal(keep, select.max_min_diversity(features.float(), 100))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(keep, select.max_min_diversity(features.float(), 100))


def test_features_that_ask_for_a_gradient() -> None:
    features = torch.randn(2, 9, 3, requires_grad=True)
    assert select.max_min_diversity(features, 4).sum() == 8


def test_copies_of_a_token_come_last() -> None:
    features = torch.tensor([[[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]])
    start = torch.tensor([[True, False, False, False, False]])
    assert select.max_min_diversity(features, 3, start).tolist() == [[True, False, True, False, True]]
    assert select.max_min_diversity(features, 4, start).tolist() == [[True, True, True, False, True]]


@pytest.mark.parametrize("plain", [False, True])
def test_of_copies_the_first_is_picked_in_any_batch(plain: bool) -> None:
    """Products of equal rows differ in their last bit where one lies in the odd end of a matrix."""
    for seed in range(10):
        features = torch.randn(1, 34, 64, generator=torch.Generator().manual_seed(seed))
        features[:, [16, 25, 33]] = features[:, 7:8].clone()  # the newline tokens of an image
        padded = torch.cat([features, torch.zeros(1, 94, 64)], 1).repeat(3, 1, 1)
        valid = torch.arange(128).expand(3, -1) < 34
        for k in (10, 31, 33):
            how = diversity._one_by_one if plain else diversity._lazily
            with mock.patch.object(diversity, "_lazily", how), mock.patch.object(farthest, "WORTH", 0):
                alone = select.max_min_diversity(features, k)
                together = select.max_min_diversity(padded, k, valid=valid)
            assert alone[0, [16, 25, 33]].tolist() == [k > 31, k > 32, False]
            assert (together[:, :34] == alone).all()


def test_rows_without_direction_do_no_harm() -> None:
    features = torch.tensor([[[torch.nan, 1.0], [0, 0], [1, 0], [torch.inf, 1]]])
    keep = select.max_min_diversity(features, 3)
    assert keep.sum() == 3
    padded = torch.cat([features, torch.full((1, 2, 2), torch.nan)], 1)
    valid = torch.tensor([[True] * 4 + [False] * 2])
    assert torch.equal(select.max_min_diversity(padded, 3, valid=valid)[:, :4], keep)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing_to_choose_from(shape: tuple[int, int]) -> None:
    assert select.max_min_diversity(torch.zeros(*shape, 4), 2).shape == shape


def test_a_budget_of_zero_and_a_row_without_tokens() -> None:
    features = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(8))
    assert not select.max_min_diversity(features, 0).any()
    valid = torch.tensor([[False] * 4, [True] * 4])
    assert select.max_min_diversity(features, 2, valid=valid).sum(-1).tolist() == [0, 2]


@pytest.mark.parametrize("crowd", [1, 4, 40])
def test_ties_with_tokens_outside_the_crowd_go_to_the_lowest_index(crowd: int) -> None:
    with mock.patch.object(lazy, "CROWD", crowd), mock.patch.object(farthest, "WORTH", 0):
        keep = select.max_min_diversity(torch.eye(200)[None], 50)  # all at the same distance
    assert keep[0].nonzero().flatten().tolist() == list(range(50))
