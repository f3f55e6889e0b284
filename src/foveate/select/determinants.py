"""Determinantal point processes on a CPU, where the plain forms read everything for each pick: the same picks."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from foveate.select.cosine import Rows
from foveate.select.elimination import in_rounds
from foveate.select.residual import Residual


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
