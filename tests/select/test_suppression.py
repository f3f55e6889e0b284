from __future__ import annotations

from typing import Literal
from unittest import mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from foveate import select
from foveate.select import nms as greedy
from foveate.select import nms as walk
from foveate.select.cosine import unit_rows
from tests.select import reference
from tests.select.cases import Case, continuous, sets, tied

Fill = Literal["saliency", "stop", "relax"]
FILLS = st.sampled_from(("saliency", "stop", "relax"))
BLOCKS = st.sampled_from((1, 3, 128))
PLAIN = st.booleans()


def choose(case: Case, threshold: float, fill: Fill, plain: bool = False, block: int = 96) -> Tensor:
    """`plain`: the form for devices other than the CPU."""

    def batched(features: Tensor, *rest: Tensor) -> Tensor:
        return greedy._greedy(unit_rows(features.float()), *rest)

    with (
        mock.patch.object(greedy, "_walked", batched if plain else greedy._walked),
        mock.patch.object(greedy, "BLOCK", block),
        mock.patch.object(walk, "BLOCK", block),
    ):
        return select.suppression(case.features, case.scores, case.k, threshold, fill, case.valid)


def expected(case: Case, threshold: float, fill: str) -> list[set[int]]:
    return [
        reference.suppression(features, scores, k, threshold, fill, valid, greedy.BISECTIONS)
        for features, scores, k, _, valid in case.rows()
    ]


@given(tied(), st.sampled_from((-2.0, -0.75, -0.5, 0.0, 0.25, 0.5, 0.9)), FILLS, PLAIN, BLOCKS, st.integers(1, 4))
def test_agrees_with_the_definition(
    case: Case, threshold: float, fill: Fill, plain: bool, block: int, rounds: int
) -> None:
    # Bisected, these angles meet a cosine of the case, and rounding decides.
    assume(fill != "relax" or threshold not in (-2.0, -0.5))
    with mock.patch.object(greedy, "ROUNDS", rounds):
        keep = choose(case, threshold, fill, plain, block)
    assert sets(keep) == expected(case, threshold, fill)


@given(continuous(), st.floats(-1, 1, exclude_max=True), st.sampled_from(("saliency", "stop")), PLAIN, BLOCKS)
def test_agrees_on_continuous_features(case: Case, threshold: float, fill: Fill, plain: bool, block: int) -> None:
    unit = torch.nn.functional.normalize(case.features.double(), dim=-1)
    assume(bool(((unit @ unit.mT - threshold).abs() > 1e-5).all()))  # no pair on the brink, where rounding decides
    keep = choose(case, threshold, fill, plain, block)
    assert sets(keep) == expected(case, threshold, fill)


@given(tied(), st.floats(-1, 1), st.sampled_from(("saliency", "relax")))
def test_reaches_the_budget_exactly(case: Case, threshold: float, fill: Fill) -> None:
    keep = select.suppression(case.features, case.scores, case.k, threshold, fill, case.valid)
    assert torch.equal(keep.sum(-1), torch.minimum(case.k, case.valid.sum(-1)))
    assert not (keep & ~case.valid).any()


@given(tied(), st.sampled_from((1.0, 1, 1.5, float("inf"))), FILLS)
def test_threshold_of_one_is_plain_top_k(case: Case, threshold: float, fill: Fill) -> None:
    # Copies of one token included: their cosine may come out a rounding above 1.
    features = case.features + 0.1
    keep = select.suppression(features, case.scores, case.k, threshold, fill, case.valid)
    assert torch.equal(keep, select.top_k(case.scores, case.k, case.valid))


@given(continuous(), st.floats(-1, 0.99))
def test_before_filling_no_pair_is_too_alike(case: Case, threshold: float) -> None:
    keep = select.suppression(case.features, case.scores, case.k, threshold, "stop", case.valid)
    unit = torch.nn.functional.normalize(case.features.double(), dim=-1)
    for row, kept in zip(unit, keep, strict=True):
        cosine = (row[kept] @ row[kept].T).fill_diagonal_(-2)
        assert not (cosine > threshold + 1e-6).any()


@given(continuous(), st.floats(-1, 0.99))
def test_filling_only_adds(case: Case, threshold: float) -> None:
    stopped = select.suppression(case.features, case.scores, case.k, threshold, "stop", case.valid)
    filled = select.suppression(case.features, case.scores, case.k, threshold, "saliency", case.valid)
    assert not (stopped & ~filled).any()


def test_relax_keeps_rows_that_had_enough() -> None:
    generator = torch.Generator().manual_seed(3)
    features, scores = torch.randn(2, 30, 8, generator=generator), torch.randn(2, 30, generator=generator)
    features[1] = features[1, :1] + 0.01 * features[1]  # all alike: falls short
    stopped = select.suppression(features, scores, 5, 0.6, "stop")
    assert stopped.sum(-1).tolist() == [5, 1]
    relaxed = select.suppression(features, scores, 5, 0.6, "relax")
    assert torch.equal(relaxed[0], stopped[0])
    assert relaxed.sum(-1).tolist() == [5, 5]
    assert not torch.equal(relaxed[1], select.suppression(features, scores, 5, 0.6)[1])  # not the fill by score


def test_relax_leaves_a_set_of_just_the_budget_as_it_is() -> None:
    """The second token is too alike to the first by a hair: a threshold raised by ever so little would take it."""
    near = torch.tensor(0.6 + 1e-5)
    features = torch.stack([torch.tensor([1.0, 0, 0]), torch.tensor([near, (1 - near**2).sqrt(), 0]), torch.eye(3)[2]])
    keep = select.suppression(features[None], torch.tensor([[3.0, 2.0, 1.0]]), 2, 0.6, "relax")
    assert keep.tolist() == [[True, False, True]]


@pytest.mark.parametrize("fill", ["saliency", "stop", "relax"])
def test_batch_equals_singles(fill: Fill) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 300, 12, generator=generator)
    scores = torch.randn(3, 300, generator=generator)
    valid = torch.arange(300) < torch.tensor([300, 170, 40])[:, None]
    k = torch.tensor([60, 55, 50])
    keep = select.suppression(features, scores, k, 0.35, fill, valid)
    for row, length in enumerate((300, 170, 40)):
        part = features[row : row + 1, :length], scores[row : row + 1, :length]
        alone = select.suppression(*part, int(k[row]), 0.35, fill)
        assert torch.equal(alone[0], keep[row, :length])
        assert not keep[row, length:].any()


@pytest.mark.parametrize("fill", ["saliency", "stop", "relax"])
def test_follows_a_permutation(fill: Fill) -> None:
    generator = torch.Generator().manual_seed(1)
    features, scores = torch.randn(1, 200, 8, generator=generator), torch.randn(1, 200, generator=generator)
    order = torch.randperm(200, generator=generator)
    keep = select.suppression(features, scores, 40, 0.4, fill)
    assert torch.equal(select.suppression(features[:, order], scores[:, order], 40, 0.4, fill), keep[:, order])


def test_long_chains_inside_a_block_are_settled() -> None:
    # Neighbours on a circle exclude each other: every other one must stay, and each depends on the one before.
    angle = torch.arange(100) * 0.05
    features = torch.stack([angle.cos(), angle.sin()], -1)[None]
    everyone = torch.ones(1, 100, dtype=torch.bool)
    case = Case(features, -torch.arange(100.0)[None], torch.tensor([100]), everyone, everyone)
    for plain in (False, True):
        keep = choose(case, 0.99799, "stop", plain, block=128)  # cos 0.0632
        assert keep[0].nonzero().flatten().tolist() == list(range(0, 100, 2))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("block", [1, 2, 3, 128])
@pytest.mark.parametrize(
    ("scores", "k", "fill", "kept"),
    [
        # neighbours are too alike: of equal scores the lowest index is taken, and puts the next one to rest
        ([1, 1, 1, 1, 1, 1], 6, "stop", [0, 2, 4]),
        ([1, 1, 1, 1, 1, 1], 2, "stop", [0, 2]),
        ([1, 1, 1, 1, 1, 1], 4, "saliency", [0, 1, 2, 4]),
        ([1, 1, 1, 2, 2, 2], 6, "stop", [0, 3, 5]),
        ([1, 1, 1, 2, 2, 2], 2, "stop", [3, 5]),
        ([1, 1, 1, 2, 2, 2], 4, "saliency", [0, 3, 4, 5]),
        ([1, 2, 2, 1, 2, 2], 6, "stop", [1, 4]),
        ([1, 2, 2, 1, 2, 2], 5, "saliency", [0, 1, 2, 4, 5]),
    ],
)
def test_of_equal_scores_the_lowest_index_is_taken(
    plain: bool, block: int, scores: list[int], k: int, fill: Fill, kept: list[int]
) -> None:
    angle = torch.arange(6.0) * 0.5
    features = torch.stack([angle.cos(), angle.sin()], -1)[None]
    everyone = torch.ones(1, 6, dtype=torch.bool)
    case = Case(features, torch.tensor([scores]), torch.tensor([k]), everyone, everyone)
    assert sets(choose(case, 0.7, fill, plain, block)) == [set(kept)]  # cos 0.5 = 0.88, cos 1 = 0.54


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("block", [1, 2, 128])
@pytest.mark.parametrize(("threshold", "kept"), [(0.5, [0, 1]), (0.49, [0]), (0.0, [0])])
def test_a_cosine_of_the_threshold_is_not_above_it(plain: bool, block: int, threshold: float, kept: list[int]) -> None:
    features = torch.tensor([[[1.0, 1, 1, 1], [1, 1, 1, -1], [1, 1, 1, 1]]])  # cosines 1/2 and 1, exact in binary
    everyone = torch.ones(1, 3, dtype=torch.bool)
    case = Case(features, torch.tensor([[3, 2, 1]]), torch.tensor([3]), everyone, everyone)
    assert sets(choose(case, threshold, "stop", plain, block)) == [set(kept)]


def test_both_forms_agree_on_many_tokens() -> None:
    generator = torch.Generator().manual_seed(4)
    features, scores = torch.randn(2, 500, 24, generator=generator), torch.randn(2, 500, generator=generator)
    valid = torch.rand(2, 500, generator=generator) < 0.9
    for threshold in (0.2, 0.6):
        case = Case(features, scores, torch.tensor([150, 90]), valid, valid)
        assert torch.equal(choose(case, threshold, "relax"), choose(case, threshold, "relax", plain=True))


def test_halves_are_compared_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(1, 500, 64, generator=generator).bfloat16()
    scores = torch.randn(1, 500, generator=generator).bfloat16()
    keep = select.suppression(features, scores, 500, 0.2, "stop")
    assert torch.equal(keep, select.suppression(features.float(), scores.float(), 500, 0.2, "stop"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(keep, select.suppression(features.float(), scores.float(), 500, 0.2, "stop"))


def test_rows_without_direction_suppress_nothing() -> None:
    features = torch.tensor([[[0.0, 0], [torch.nan, 1], [torch.inf, 1], [0, 0]]])
    scores = torch.tensor([[4.0, 3, 2, 1]])
    assert select.suppression(features, scores, 4, 0.0, "stop").all()
    assert select.suppression(features, scores, 4, -0.5, "stop").sum() == 1  # cosine 0 is above -0.5


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
@pytest.mark.parametrize("fill", ["saliency", "stop", "relax"])
def test_nothing_to_choose_from(shape: tuple[int, int], fill: Fill) -> None:
    assert select.suppression(torch.zeros(*shape, 4), torch.zeros(shape), 2, 0.5, fill).shape == shape


def test_a_budget_of_zero() -> None:
    assert not select.suppression(torch.ones(2, 3, 4), torch.zeros(2, 3), 0, 0.5).any()
