"""Greedy determinants on a CPU by rows of the kernel's Cholesky factor, many picks at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from foveate.select.lazy import Array

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
