from __future__ import annotations

import pytest
import torch
from hypothesis import given

from foveate import select
from tests.select import reference
from tests.select.cases import Case, sets, tied


@given(tied())
def test_agrees_with_the_definition(case: Case) -> None:
    keep = select.top_k(case.scores, case.k, case.valid)
    assert sets(keep) == [reference.top_k(scores, k, valid) for _, scores, k, _, valid in case.rows()]


@given(tied())
def test_batch_equals_singles(case: Case) -> None:
    keep = select.top_k(case.scores, case.k, case.valid)
    for row in range(len(keep)):
        alone = select.top_k(case.scores[row : row + 1], int(case.k[row]), case.valid[row : row + 1])
        assert torch.equal(alone[0], keep[row])


def test_ties_go_to_the_lowest_index() -> None:
    assert select.top_k(torch.tensor([[1.0, 2, 2, 1, 2]]), 2).tolist() == [[False, True, True, False, False]]


def test_follows_a_permutation() -> None:
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(select.top_k(scores[:, order], 9), select.top_k(scores, 9)[:, order])


def test_padding_loses_to_the_worst_score() -> None:
    scores = torch.tensor([[9.0, -torch.inf, torch.nan, 1.0]])
    valid = torch.tensor([[False, True, True, True]])
    assert select.top_k(scores, 2, valid).tolist() == [[False, True, False, True]]
    assert select.top_k(scores, 9, valid).tolist() == [[False, True, True, True]]


def test_nan_ranks_below_every_number() -> None:
    assert select.top_k(torch.tensor([[torch.nan, 0.0, -1e30]]), 2).tolist() == [[False, True, True]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_types(dtype: torch.dtype) -> None:
    scores = torch.tensor([[0, 1, 0, 1]]).to(dtype)
    assert select.top_k(scores, 3).tolist() == [[True, True, False, True]]


def test_whole_numbers_are_compared_exactly() -> None:
    assert select.top_k(torch.tensor([[2**60, 2**60 + 1]]), 1).tolist() == [[False, True]]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_choose_from(shape: tuple[int, int]) -> None:
    assert select.top_k(torch.zeros(shape), 2).shape == shape


def test_the_inputs_stay_as_they_were() -> None:
    scores, valid = torch.tensor([[torch.nan, 1.0]]), torch.tensor([[True, False]])
    select.top_k(scores, 1, valid)
    assert scores.isnan().tolist() == [[True, False]]
    assert valid.tolist() == [[True, False]]


@pytest.mark.parametrize("k", [torch.tensor(2), torch.tensor(2, dtype=torch.int32), torch.tensor([2, 2]).numpy()[0]])
def test_a_number_in_a_tensor_is_a_number(k) -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]])
    assert torch.equal(select.top_k(scores, k), select.top_k(scores, 2))
