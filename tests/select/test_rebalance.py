from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate import select
from tests.select import reference
from tests.select.cases import Case, sets, tied

OVERS = st.sampled_from(("1", "1.1", "1.2", "1.5", "2.3", "3.7", "100"))
SPLITS = st.one_of(st.integers(0, 16), st.sampled_from(("0", "0.25", "0.3", "0.5", "1")))


@given(tied(), OVERS, SPLITS)
def test_agrees_with_the_definition(case: Case, over: str, split: str | int) -> None:
    given_split = split if isinstance(split, int) else float(split)
    keep = select.rebalanced_top_k(case.scores, case.k, float(over), given_split, case.valid)
    exact = split if isinstance(split, int) else Fraction(split)
    assert sets(keep) == [
        reference.rebalanced_top_k(scores, k, Fraction(over), exact, valid) for _, scores, k, _, valid in case.rows()
    ]


@given(tied(), OVERS, SPLITS)
def test_batch_equals_singles(case: Case, over: str, split: str | int) -> None:
    cut = split if isinstance(split, int) else float(split)
    keep = select.rebalanced_top_k(case.scores, case.k, float(over), cut, case.valid)
    assert torch.equal(keep.sum(-1), torch.minimum(case.k, case.valid.sum(-1)))
    for row in range(len(keep)):
        one = slice(row, row + 1)
        alone = select.rebalanced_top_k(case.scores[one], int(case.k[row]), float(over), cut, case.valid[one])
        assert torch.equal(alone[0], keep[row])


@given(tied(), SPLITS)
def test_over_1_is_plain_top_k(case: Case, split: str | int) -> None:
    cut = split if isinstance(split, int) else float(split)
    keep = select.rebalanced_top_k(case.scores, case.k, 1, cut, case.valid)
    assert torch.equal(keep, select.top_k(case.scores, case.k, case.valid))


@pytest.mark.parametrize(("over", "k", "candidates"), [(3.7, 86, 318), (1.2, 10, 12), (1.15, 100, 115), (1.1, 10, 11)])
def test_candidates_are_counted_exactly(over: float, k: int, candidates: int) -> None:
    # Token 1 comes last among the candidates and token 0 next: one candidate fewer and 1 goes, one more and 0 comes.
    scores = torch.arange(576.0)[None]
    scores[0, 0], scores[0, 1] = 576 - candidates + 0.25, 576 - candidates + 0.5
    keep = select.rebalanced_top_k(scores, k, over, split=2)
    assert keep.sum() == k
    assert keep[0, :2].tolist() == [False, True]


def test_front_tokens_pass_better_ones_behind() -> None:
    scores = torch.tensor([[1.0, 2, 3, 9, 8, 7]])
    assert sets(select.rebalanced_top_k(scores, 3, 1.0)) == [{3, 4, 5}]
    assert sets(select.rebalanced_top_k(scores, 3, 1.4)) == [{2, 3, 4}]
    assert sets(select.rebalanced_top_k(scores, 3, 2.0)) == [{0, 1, 2}]


def test_too_many_in_front_are_cut_to_the_best() -> None:
    scores = torch.tensor([[5.0, 9, 6, 8, 7, 99, 98]])
    assert sets(select.rebalanced_top_k(scores, 3, 100.0, 5)) == [{1, 3, 4}]


def test_one_as_an_index_is_not_one_as_a_share() -> None:
    scores = torch.tensor([[1.0, 2, 3, 4]])
    assert sets(select.rebalanced_top_k(scores, 2, 2.0, 1)) == [{0, 3}]
    assert sets(select.rebalanced_top_k(scores, 2, 2.0, 1.0)) == [{2, 3}]


def test_the_split_counts_valid_tokens() -> None:
    scores, valid = torch.tensor([[0.0, 0, 1, 2, 3, 4]]), torch.tensor([[False, False, True, True, True, True]])
    assert sets(select.rebalanced_top_k(scores, 2, 2.0, 0.5, valid)) == [{2, 3}]
    assert sets(select.rebalanced_top_k(scores, 2, 2.0, 2, valid)) == [{2, 3}]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.29, 0.3, 0.5, 0.6, 0.7, 0.75, 1.0])
def test_where_the_back_begins(share: float) -> None:
    """With every token a candidate, one in front of the split passes any behind it."""
    for number in (4, 10, 20, 100):
        begin = Fraction(str(share)) * number
        if begin.denominator > 1:
            continue
        scores = torch.arange(float(number))[None]  # those behind are the better ones
        for k in {1, int(begin), number - 1} - {0}:
            front = min(k, int(begin))
            kept = {*range(int(begin) - front, int(begin)), *range(number - (k - front), number)}
            assert sets(select.rebalanced_top_k(scores, k, number, share)) == [kept], (number, k)


def test_nan_ranks_below_every_number() -> None:
    scores = torch.tensor([[torch.nan, 0.0, -1e30]])
    assert sets(select.rebalanced_top_k(scores, 2, 1.2)) == [{1, 2}]
    assert sets(select.rebalanced_top_k(scores, 2, 1.5, 1)) == [{0, 1}]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_types(dtype: torch.dtype) -> None:
    scores = torch.tensor([[0, 1, 0, 1]]).to(dtype)
    assert sets(select.rebalanced_top_k(scores, 2, 1.5)) == [{0, 1}]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_choose_from(shape: tuple[int, int]) -> None:
    assert select.rebalanced_top_k(torch.zeros(shape), 2).shape == shape


def test_the_inputs_stay_as_they_were() -> None:
    scores, valid, k = torch.tensor([[torch.nan, 1.0]]), torch.tensor([[True, False]]), torch.tensor([2])
    select.rebalanced_top_k(scores, k, 2.0, valid=valid)
    assert scores.isnan().tolist() == [[True, False]]
    assert valid.tolist() == [[True, False]]
    assert k.tolist() == [2]
