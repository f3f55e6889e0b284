"""Tokens that are relevant and unlike each other: greedy MAP of a determinantal point process."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from foveate.kernels import dispatch
from foveate.select.checks import check_budget, check_features, check_mask, exact, widest
from foveate.select.cosine import Rows, repeats_of
from foveate.select.lazy_greedy import Array, Index, LazyGreedy
from foveate.tensors import best, take_rows, wide

EXHAUSTED = 1e-6  # of the row's largest L_jj: a residual that small is rounding
ASYMMETRY = 1e-2  # of the kernel's largest entry: more than half precision makes of a symmetric one


@exact
def dpp(kernel: Tensor, k: int | Tensor, valid: Tensor | None = None) -> Tensor:
    """Pick tokens one by one, each the one that raises the determinant of the kernel's selected part most.

    Parameters
    ----------
    kernel
        L, (B, N, N) floating point, symmetric and positive semi-definite; computed with in float32 (float64 for
        float64). A token with a NaN or infinity at L_jj counts as a row of zeros, any other NaN or infinity as zero.
    k
        Tokens to keep: an int, or (B,) whole numbers, one for each row.
    valid
        (B, N) bool, False for padding, which is never kept; None: all tokens count.

    Returns
    -------
    Tensor
        keep (B, N) bool with exactly min(k, valid tokens) True in a row. Ties go to the lowest index. Once the
        selected tokens explain all others (the largest residual is at most a millionth of the largest L_jj), the
        places left go to the largest L_jj.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type or shape, k is negative, or the kernel is clearly not symmetric.

    Notes
    -----
    The fast greedy algorithm of Chen, Zhang, Zhou 2018, arXiv 1709.05135. O(N k²) and, beside the kernel, k x N
    numbers. Where L = F Fᵀ is known, `low_rank_dpp` needs no kernel.
    """
    kernel = wide(check_features(kernel, "kernel", "(B, N, N)"))
    if kernel.shape[1] != kernel.shape[2]:
        raise ValueError(f"kernel must have shape (B, N, N), got {tuple(kernel.shape)}")
    valid = check_mask("valid", valid, kernel.shape[:2], kernel.device)
    budget = check_budget(k, valid)
    if not widest(budget):
        return torch.zeros_like(valid)
    absent = ~kernel.diagonal(dim1=1, dim2=2).isfinite() | ~valid
    if bool(absent.any()) or not bool(kernel.isfinite().all()):
        kernel = kernel.nan_to_num(0, 0, 0).masked_fill(absent[:, :, None] | absent[:, None], 0)
    apart = float((kernel - kernel.mT).abs().amax())
    if apart > ASYMMETRY * float(kernel.abs().amax()):
        raise ValueError(f"kernel must be symmetric, but two opposite entries differ by {apart:g}")
    gain = kernel.diagonal(dim1=1, dim2=2).clone()
    pick = by_kernel if kernel.device.type == "cpu" else _by_kernel
    return _fill(pick(kernel, *_beginning(gain, valid), budget), gain, budget, valid)


@exact
def low_rank_dpp(factors: Tensor, k: int | Tensor, valid: Tensor | None = None) -> Tensor:
    """`dpp` for the kernel L = F Fᵀ, which is never formed.

    Each token's residual, the squared length of what the selected tokens do not explain of it, is carried along:
    in all O(N k D), and O((N + k) D) numbers. CDPruner's kernel is such a one, with F the unit features times
    relevance.

    Parameters
    ----------
    factors
        F, (B, N, D) floating point; computed with in float32 (float64 for float64). A row with a NaN or infinity, or
        whose squared length is not finite, counts as zeros.
    k, valid
        As for `dpp`.

    Returns
    -------
    Tensor
        keep (B, N) bool, as from `dpp`. A token that equals an earlier one to the bit adds nothing to it.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type or shape, or k is negative.

    Notes
    -----
    Chen, Zhang, Zhou 2018, arXiv 1709.05135, section 3, with Gram-Schmidt in place of the growing Cholesky factor;
    CDPruner, Zhang et al., arXiv 2506.10967.
    On CUDA a Triton kernel picks for the whole batch in one launch (see `kernels.dispatch`), and unless k lies on the
    GPU, nothing waits for it.
    """
    factors = check_features(factors, "factors")
    valid = check_mask("valid", valid, factors.shape[:2], factors.device)
    budget = check_budget(k, valid)
    keep = dispatch.low_rank_dpp(factors, k, budget, valid, agrees)
    if keep is not None:
        return keep
    if not widest(budget):
        return torch.zeros_like(valid)
    factors = wide(factors)
    gain = torch.linalg.vector_norm(factors, dim=-1).square_()
    absent = ~gain.isfinite()
    if bool(absent.any()):
        factors = factors.masked_fill(absent[..., None], 0)
        gain.masked_fill_(absent, 0)
    pick = by_factors if factors.device.type == "cpu" else _by_factors
    picked = pick(factors, *_beginning(gain, valid, repeats_of(factors, valid)), budget)
    return _fill(picked, gain, budget, valid)


def _beginning(gain: Tensor, valid: Tensor, repeats: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Residuals (B, N) to begin with, -inf for what cannot be picked, and those (B, 1) at which a row is exhausted."""
    left = gain.masked_fill(~valid, -torch.inf)
    floor = EXHAUSTED * left.amax(-1, keepdim=True).clamp(min=0)
    return (left if repeats is None else left.masked_fill(repeats, -torch.inf)), floor


def _fill(keep: Tensor, gain: Tensor, budget: Tensor, valid: Tensor) -> Tensor:
    """The picks and, where there are fewer than wanted, the largest L_jj of the others."""
    return keep | best(gain, budget - keep.sum(-1), valid & ~keep)


def _by_factors(factors: Tensor, left: Tensor, floor: Tensor, budget: Tensor) -> Tensor:
    """The plain form: one pick a step, no read from the device inside the loop.

    Parameters
    ----------
    left
        (B, N) residuals, -inf for what cannot be picked; used up. Rounding may turn one negative, which is under the
        floor like zero.
    floor
        (B, 1) residual at which a row is exhausted.
    budget
        (B,) long, tokens wanted.
    """
    batch, _, width = factors.shape
    keep = torch.zeros_like(left, dtype=torch.bool)
    basis = factors.new_zeros(batch, widest(budget), width)  # of what the picks span, for each row in its own order
    for step in range(basis.shape[1]):
        pick = left.argmax(-1, keepdim=True)
        wanted = (left.gather(1, pick) > floor) & (step < budget)[:, None]
        vector, earlier = take_rows(factors, pick), basis[:, :step]
        for _ in range(2):  # the second time takes away what rounding left
            vector = vector - torch.bmm(torch.bmm(vector, earlier.mT), earlier)
        length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        basis[:, step : step + 1] = vector = (vector / length).masked_fill_(~wanted[..., None], 0)
        left -= torch.bmm(factors, vector.mT).squeeze(-1).square_()
        keep.scatter_(1, pick, keep.gather(1, pick) | wanted)
        left.scatter_(1, pick, -torch.inf)
    return keep


def _by_kernel(kernel: Tensor, left: Tensor, floor: Tensor, budget: Tensor) -> Tensor:
    """The plain form on a kernel (B, N, N): a row of its Cholesky factor a step; arguments as of `_by_factors`."""
    batch, number, _ = kernel.shape
    keep = torch.zeros_like(left, dtype=torch.bool)
    rows = kernel.new_zeros(batch, widest(budget), number)
    for step in range(rows.shape[1]):
        pick = left.argmax(-1, keepdim=True)
        residual = left.gather(1, pick)
        wanted = (residual > floor) & (step < budget)[:, None]
        earlier = rows[:, :step]
        at_pick = earlier.gather(2, pick[:, None].expand(-1, step, -1))
        row = take_rows(kernel, pick) - torch.bmm(at_pick.mT, earlier)
        rows[:, step : step + 1] = row = (row / residual.sqrt()[..., None]).masked_fill_(~wanted[..., None], 0)
        left -= row.squeeze(1).square_()
        keep.scatter_(1, pick, keep.gather(1, pick) | wanted)
        left.scatter_(1, pick, -torch.inf)
    return keep


def by_factors(factors: Tensor, left: Tensor, floor: Tensor, budget: Tensor) -> Tensor:
    """Picks (B, N) bool for the kernel F Fᵀ; what they span is held as k x N or k x D numbers, whichever are fewer.

    Parameters
    ----------
    factors
        (B, N, D) float32 or float64.
    left
        (B, N) residuals to begin with, -inf for what cannot be picked; used up.
    floor
        (B, 1) residual at which a row is exhausted.
    budget
        (B,) long, tokens wanted.
    """
    keep = torch.zeros_like(left, dtype=torch.bool)
    for row, (count, least) in enumerate(zip(budget.tolist(), floor.flatten().tolist(), strict=True)):
        if factors.shape[1] <= factors.shape[2]:
            picks = in_rounds(functools.partial(_product_at, factors[row]), left[row], least, count)
        else:
            picks = Residual(Rows(factors[row]), left[row], count).run(least)
        keep[row, picks] = True
    return keep


def _product_at(factors: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
    """F Fᵀ at the rows and columns; None: all."""
    others = factors if columns is None else factors.index_select(0, columns)
    return factors.index_select(0, rows) @ others.T


def by_kernel(kernel: Tensor, left: Tensor, floor: Tensor, budget: Tensor) -> Tensor:
    """Picks (B, N) bool for a kernel (B, N, N); the other arguments as of `by_factors`."""

    def at(rows: Tensor, columns: Tensor | None) -> Tensor:
        part = kernel[row].index_select(0, rows)
        return part if columns is None else part.index_select(1, columns)

    keep = torch.zeros_like(left, dtype=torch.bool)
    for row, (count, least) in enumerate(zip(budget.tolist(), floor.flatten().tolist(), strict=True)):
        keep[row, in_rounds(at, left[row], least, count)] = True
    return keep


ROUNDED = 0.3  # where less is left of a row's length, rounding left too much of what was taken away


class Residual(LazyGreedy):
    """Determinantal point process: the gain is the squared length of what the picks do not explain of a row."""

    def update(self, gain: Array, products: Tensor, news: Tensor | None, index: Index) -> Array:
        squares = products.square_()
        if news is not None:
            squares.mul_(news)
        return gain - squares.sum(0).numpy()

    def settle(self, rows: Tensor, gain: Array, first: int, bound: float, most: int, index: Index) -> list[int]:
        earlier = self.basis[: self.taken]
        known = rows @ earlier.T
        gram = (rows @ rows.T - known @ known.T).numpy()
        chosen, _ = eliminate(gram, gain, first, bound, most)
        those = torch.tensor(chosen)
        picked = rows.index_select(0, those)
        rest = picked - known.index_select(0, those) @ earlier
        shrunk = torch.linalg.vector_norm(rest, dim=1) / torch.linalg.vector_norm(picked, dim=1)
        if float(shrunk.min()) < ROUNDED:
            rest = self._apart(rest)
        basis = orthonormal(rest)
        if float((basis * rest).sum(1).div_(torch.linalg.vector_norm(rest, dim=1)).min()) < ROUNDED:
            basis = orthonormal(self._apart(basis))
        self.basis[self.taken : self.taken + len(chosen)] = basis
        return chosen

    def _apart(self, rows: Tensor) -> Tensor:
        """What the basis does not explain of the rows."""
        earlier = self.basis[: self.taken]
        return rows - (rows @ earlier.T) @ earlier


def orthonormal(rows: Tensor) -> Tensor:
    """Gram-Schmidt of rows (R, D), in their order."""
    basis = rows
    for _ in range(2):  # by Cholesky factors, several times as fast as Householder's QR; the second time for rounding
        gram = basis @ basis.T
        factor, failed = torch.linalg.cholesky_ex(gram)
        if bool(failed):
            break
        basis = torch.linalg.solve_triangular(factor, basis, upper=False)
    else:
        if float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max()) < 0.01:
            return basis
    return torch.linalg.qr(rows.T).Q.T


CROWD = 128  # tokens of which picks are made at a time

Part = Callable[[Tensor, Tensor | None], Tensor]


def eliminate(gram: Array, gain: Array, first: int, bound: float, most: int) -> tuple[list[int], Tensor]:
    """Pick `first` and then as long as the best gain exceeds `bound`, inside a crowd.

    Parameters
    ----------
    gram
        (C, C) what earlier picks leave of the kernel; used up.
    gain
        (C,) residuals; brought in date in place, -inf for the picks.

    Returns
    -------
    tuple
        The picks' places, and the Cholesky factor (R, R) of the Gram matrix there.
    """
    chosen, rows, place = [], [], first
    while True:
        chosen.append(place)
        row = gram[place] / np.sqrt(gain[place])
        rows.append(row)
        gain -= row * row
        gain[place] = -np.inf
        place = int(gain.argmax())
        if len(chosen) == most or not gain[place] > bound:
            break
        gram -= np.outer(row, row)
    return chosen, torch.from_numpy(np.stack(rows)[:, chosen].T.copy()).tril_()


def in_rounds(part: Part, left: Tensor, floor: float, most: int) -> list[int]:
    """One sample's picks; k x N numbers beside the kernel.

    Residuals only ever fall. So as long as the best of a small crowd, kept in date, exceeds the highest that anyone
    outside had when the round began, it is the best of all; those outside catch up once a round.

    Parameters
    ----------
    part
        Gives the kernel at rows (C,) and columns (C,), None: all columns.
    left
        (N,) residuals, -inf for what cannot be picked; used up.
    """
    rows = left.new_empty(most, len(left))
    picks: list[int] = []
    while len(picks) < most:
        first = int(left.argmax())
        if not float(left[first]) > floor:
            break
        index, bound = torch.arange(len(left)), floor
        if len(left) > CROWD:
            best = left.topk(CROWD + 1)
            index, bound = best.indices[:CROWD], max(floor, float(best.values[-1]))
            if not bool((index == first).any()):  # then all of them are as good as it
                index[-1] = first
            index = index.sort().values
        known = rows[: len(picks)].index_select(1, index)
        gram = (part(index, index) - known.T @ known).numpy()
        place = int((index == first).nonzero())
        chosen, factor = eliminate(gram, left[index].numpy(), place, bound, most - len(picks))
        picked, those = index[chosen], known[:, chosen]
        rest = torch.addmm(part(picked, None), those.T, rows[: len(picks)], alpha=-1)
        fresh = torch.linalg.solve_triangular(factor, rest, upper=False)
        rows[len(picks) : len(picks) + len(chosen)] = fresh
        left -= fresh.square_().sum(0)
        left[picked] = -torch.inf
        picks += picked.tolist()
    return picks


def agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel on `device` selects from a small problem what the plain form does on the CPU."""
    from foveate.kernels.dpp import low_rank_dpp as kernel

    factors, budget, valid = (tensor[1:] for tensor in dispatch.small_problem(dtype))
    budget = budget.clamp(max=12)  # the first factors are of rank 16: near the end rounding decides
    fused = kernel(factors.to(device), budget.to(device), valid.to(device))
    return torch.equal(fused.cpu(), low_rank_dpp(factors, budget, valid))
