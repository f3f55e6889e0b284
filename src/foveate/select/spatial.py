"""Cells of a grid spread as evenly as can be: farthest points by their distance in the image."""

from __future__ import annotations

import functools
import operator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Metric = Literal["manhattan", "euclidean"]
METRICS = ("manhattan", "euclidean")


def spatial_order(height: int, width: int, metric: Metric = "manhattan") -> Tensor:
    """Rank of each cell of a grid when farthest points are taken one by one from the first cell on.

    Each next cell is the one whose nearest taken cell is farthest; ties go to the lowest index. It depends on nothing
    but the arguments and is worked out once for a shape, on the CPU: a GPU gets the table, and is not waited for.

    Parameters
    ----------
    height, width
        Rows and columns, at least 1.
    metric
        Distance between two cells: "manhattan", rows plus columns between them, or "euclidean".

    Returns
    -------
    Tensor
        (height * width,) long on the CPU, row by row: 0 for the first cell, 1 for the next one taken, and so on. The
        caller's own: changing it changes no later result.

    Raises
    ------
    TypeError, ValueError
        When a side is no whole number of at least 1, or the metric is unknown.

    Notes
    -----
    Balanced Token Pruning, arXiv 2505.22038, eq. 11; its released code starts at the first cell too.
    """
    sides = _whole("height", height, 1), _whole("width", width, 1)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    return _ranks(*sides, metric).clone()


def spatial_seed(height: int, width: int, k: int, metric: Metric = "manhattan") -> Tensor:
    """Spread k cells over a grid: the first k of `spatial_order`, so that a smaller seed is part of a larger one.

    Parameters
    ----------
    height, width
        Rows and columns, at least 1.
    k
        Cells to take.
    metric
        Distance between two cells, see `spatial_order`.

    Returns
    -------
    Tensor
        (height * width,) bool on the CPU, row by row, with exactly min(k, height * width) True.

    Raises
    ------
    TypeError, ValueError
        As for `spatial_order`, and when k is no whole number or is negative.
    """
    return spatial_order(height, width, metric) < _whole("k", k, 0)


def _whole(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


@functools.lru_cache(maxsize=256)
def _ranks(height: int, width: int, metric: str) -> Tensor:
    """The plain greedy, level by level.

    Distances are whole numbers (squared, where Euclidean: the order is the same), so many cells share the greatest
    distance d to the cells taken. They come in order of index, each one that no cell of the same level has come nearer
    to than d; what a pick changes lies within d of it, a small window from the first few picks on.
    """
    rows, columns = np.abs(np.arange(1 - height, height))[:, None], np.abs(np.arange(1 - width, width))
    # distance[height - 1 - r :, width - 1 - c :] begins with the distances of all cells to the cell (r, c).
    distance = rows + columns if metric == "manhattan" else rows**2 + columns**2
    nearest = distance[height - 1 :, width - 1 :].copy()
    flat = nearest.reshape(-1)  # the same memory
    ranks = np.zeros(height * width, dtype=np.int64)
    taken = 1
    while (level := int(flat.max())) > 1:
        reach = level if metric == "manhattan" else int(level**0.5) + 1
        for cell in np.flatnonzero(flat == level).tolist():
            if flat[cell] != level:
                continue
            row, column = divmod(cell, width)
            top, left = max(row - reach, 0), max(column - reach, 0)
            bottom, right = min(row + reach + 1, height), min(column + reach + 1, width)
            window = nearest[top:bottom, left:right]
            across, down = width - 1 - column, height - 1 - row
            np.minimum(window, distance[top + down : bottom + down, left + across : right + across], out=window)
            ranks[cell] = taken
            taken += 1
    last = np.flatnonzero(flat)  # all at distance 1: none of them can come nearer to another
    ranks[last] = np.arange(taken, taken + len(last))
    return torch.from_numpy(ranks)
