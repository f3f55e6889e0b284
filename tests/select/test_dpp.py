from __future__ import annotations

from importlib import import_module
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveate import select
from foveate.select import lazy_greedy as lazy
from foveate.select.dpp import orthonormal
from tests.select import reference
from tests.select.cases import Case, continuous, sets, tied

elimination = import_module("foveate.select.dpp")  # the function hides its module

DPP = select.low_rank_dpp.__wrapped__.__globals__  # the module; `select.dpp` is the function
BOTH = pytest.mark.parametrize("low_rank", [False, True])


def choose(factors: Tensor, k: int | Tensor, valid: Tensor | None, low_rank: bool) -> Tensor:
    return select.low_rank_dpp(factors, k, valid) if low_rank else select.dpp(factors @ factors.mT, k, valid)


@given(continuous(), st.booleans())
def test_agrees_with_greedy_determinants(case: Case, low_rank: bool) -> None:
    features = case.features.double()
    keep = choose(features, case.k, case.valid, low_rank)
    kernels = (features @ features.mT).tolist()
    assert sets(keep) == [
        reference.dpp(kernel, int(k), valid)
        for kernel, k, valid in zip(kernels, case.k, case.valid.tolist(), strict=True)
    ]


@given(tied(), st.booleans())
def test_each_pick_is_as_good_as_any(case: Case, low_rank: bool) -> None:
    """In single precision, and where many are equally good."""
    before: list[list[int]] = [[] for _ in case.k]
    exhausted = [False] * len(case.k)
    for k in range(1, case.features.shape[1] + 1):
        for row, kept in enumerate(sets(choose(case.features, k, case.valid, low_rank))):
            fresh = kept - set(before[row])
            assert len(kept) == min(k, int(case.valid[row].sum()))
            assert len(fresh) == len(kept) - len(before[row])  # a larger budget only adds
            if not exhausted[row]:
                kernel = (case.features[row].double() @ case.features[row].double().T).tolist()
                left = [i for i, real in enumerate(case.valid[row].tolist()) if real and i not in before[row]]
                gains = {i: reference.residual(kernel, before[row], i) for i in left}
                exhausted[row] = max(gains.values(), default=0) < 1e-4
                assert exhausted[row] or gains[next(iter(fresh))] >= max(gains.values()) - 1e-4
            before[row] += fresh


@BOTH
def test_lengths_and_angles_both_count(low_rank: bool) -> None:
    factors = torch.tensor([[[2.0, 0, 0], [1.9, 0.1, 0], [0, 1, 0], [0, 0, 0.5]]])
    assert choose(factors, 1, None, low_rank).tolist() == [[True, False, False, False]]
    assert choose(factors, 2, None, low_rank).tolist() == [[True, False, True, False]]
    assert choose(factors, 3, None, low_rank).tolist() == [[True, False, True, True]]


@BOTH
@pytest.mark.parametrize("width", [0, 1])
@pytest.mark.parametrize("crowd", [5, 128])
def test_ties_go_to_the_lowest_index(low_rank: bool, width: int, crowd: int) -> None:
    factors = torch.cat([torch.eye(200), torch.zeros(200, width)], 1)[:, : 199 + width]  # above and below 200
    with mock.patch.object(lazy, "CROWD", crowd), mock.patch.object(elimination, "CROWD", crowd):
        assert choose(factors[None], 11, None, low_rank)[0].nonzero().flatten().tolist() == list(range(11))


@BOTH
def test_an_exhausted_rank_is_filled_by_length(low_rank: bool) -> None:
    factors = torch.tensor([[[1.0, 0], [3, 0], [0, 1], [2, 0], [0, 2], [2, 0]]])
    order = [1, 4, 3, 5, 0, 2]  # two directions, then the longest of the others
    for k in range(1, 7):
        assert choose(factors, k, None, low_rank)[0].nonzero().flatten().tolist() == sorted(order[:k])


@BOTH
def test_batch_equals_singles(low_rank: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(3, 300, 40, generator=generator)
    lengths, k = (300, 170, 20), torch.tensor([35, 70, 30])  # below the rank, above it, above the tokens
    valid = torch.arange(300) < torch.tensor(lengths)[:, None]
    keep = choose(factors, k, valid, low_rank)
    for row, length in enumerate(lengths):
        alone = choose(factors[row : row + 1, :length], int(k[row]), None, low_rank)
        assert torch.equal(alone[0], keep[row, :length])
        assert not keep[row, length:].any()


@pytest.mark.parametrize("width", [200, 700])  # fewer and more than the tokens
def test_all_forms_agree_on_many_tokens(width: int) -> None:
    generator = torch.Generator().manual_seed(4)
    centres = torch.randn(1, 40, width, generator=generator, dtype=torch.float64)
    which = torch.randint(0, 40, (600,), generator=generator)
    factors = centres[:, which] + 0.03 * torch.randn(1, 600, width, generator=generator, dtype=torch.float64)
    kernel, expected = factors @ factors.mT, select.low_rank_dpp(factors, 150)
    assert torch.equal(select.dpp(kernel, 150), expected)
    with mock.patch.dict(DPP, by_factors=DPP["_by_factors"], by_kernel=DPP["_by_kernel"]):
        assert torch.equal(select.low_rank_dpp(factors, 150), expected)
        assert torch.equal(select.dpp(kernel, 150), expected)
    with (
        mock.patch.multiple(lazy, CROWD=7, READY=2, CHUNK=5),
        mock.patch.object(elimination, "CROWD", 7),
    ):
        assert torch.equal(select.low_rank_dpp(factors, 150), expected)
        assert torch.equal(select.dpp(kernel, 150), expected)


def test_rows_nearly_alike_become_orthonormal() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(1, 50, generator=generator) + 1e-3 * torch.randn(20, 50, generator=generator)
    rows[3] = rows[2]
    for these in (rows, torch.eye(20)):
        basis = orthonormal(these)
        assert (basis @ basis.T - torch.eye(20)).abs().max() < 1e-5
        assert (basis @ these.T).tril(-1).abs().max() < 1e-5 * these.norm()  # in their order


def test_of_copies_the_first_is_picked() -> None:
    for seed in range(5):
        factors = torch.randn(1, 34, 64, generator=torch.Generator().manual_seed(seed))
        factors[:, [16, 25, 33]] = factors[:, 7:8].clone()  # the newline tokens of an image
        keep = select.low_rank_dpp(factors, 31)
        assert keep[0, 7]
        assert not keep[0, [16, 25, 33]].any()


@BOTH
def test_rows_that_are_not_finite_count_as_zeros(low_rank: bool) -> None:
    factors = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(2))
    expected = choose(factors.index_fill(1, torch.tensor([1, 4]), 0), 3, None, low_rank)
    factors[0, 1], factors[0, 4, 2] = torch.nan, torch.inf
    assert torch.equal(choose(factors, 3, None, low_rank), expected)
    assert choose(factors, 6, None, low_rank).all()


def test_halves_are_computed_with_in_single_precision() -> None:
    factors = torch.randn(1, 200, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    keep = select.low_rank_dpp(factors, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(keep, select.low_rank_dpp(factors.float(), 50))


@BOTH
@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing_to_choose_from(shape: tuple[int, int], low_rank: bool) -> None:
    assert choose(torch.zeros(*shape, 4), 2, None, low_rank).shape == shape
    assert not choose(torch.ones(2, 3, 4), 0, None, low_rank).any()


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        (torch.ones(2, 3, 4), ValueError, r"kernel.*\(2, 3, 4\)"),
        (torch.ones(3, 3), ValueError, r"kernel.*\(3, 3\)"),
        (torch.ones(1, 3, 3).tril(), ValueError, "kernel.*symmetric.* 1"),
        (torch.ones(1, 3, 3, dtype=torch.long), TypeError, "kernel.*int64"),
    ],
)
def test_wrong_kernels(kernel: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select.dpp(kernel, 1)


def test_wrong_factors_and_masks() -> None:
    with pytest.raises(ValueError, match=r"factors.*\(2, 3\)"):
        select.low_rank_dpp(torch.ones(2, 3), 1)
    with pytest.raises(ValueError, match="-1"):
        select.low_rank_dpp(torch.ones(1, 2, 3), -1)
    with pytest.raises(TypeError, match=r"valid.*float32"):
        select.dpp(torch.ones(1, 2, 2), 1, torch.ones(1, 2))
