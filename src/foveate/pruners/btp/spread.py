"""Tokens spread evenly over all images of a prompt: the spatial seed of several grids at once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import VisualTokens
from foveate.tensors import to_device


def spread(tokens: VisualTokens, k: Tensor, metric: Literal["manhattan", "euclidean"] = "manhattan") -> Tensor:
    """Take the first tokens of each grid's farthest-point order, so many of each grid as its size allows.

    A cell that comes r-th of n in its grid has the rank (r + 1/2) / n, and the k lowest ranks of a sample are taken:
    grids share by size, to the token. Of tokens pruned earlier the next ones in that order take the place.

    Parameters
    ----------
    k
        (B,) long, tokens to take.
    metric
        Distance between cells, see `select.spatial_seed`.

    Returns
    -------
    Tensor
        (B, N) bool; fewer than k where too few tokens lie on a grid (separators lie on none).
    """
    rank, on_grid = spread_ranks(tokens, metric)
    return select.top_k(-rank, k, on_grid)


def spread_ranks(
    tokens: VisualTokens, metric: Literal["manhattan", "euclidean"] = "manhattan"
) -> tuple[Tensor, Tensor]:
    """The ranks (B, N) by which `spread` takes tokens, in (0, 1), and which tokens lie on a grid (B, N)."""
    device, grids = tokens.valid.device, tokens.grids
    ranks = [
        torch.cat([(select.spatial_order(grid.height, grid.width, metric) + 0.5) / grid.cells for grid in row])
        for row in grids
        if row
    ]
    if not ranks:
        return tokens.valid.float(), torch.zeros_like(tokens.valid)
    first, width = [0], []
    for row in grids:
        for grid in row:
            first.append(first[-1] + grid.cells)
            width.append(grid.width)
    before = torch.tensor([0, *map(len, grids)]).cumsum(0)[:-1, None]
    number = (tokens.grid + to_device(before, device)).clamp(0, len(width) - 1)
    of_grid = to_device(torch.tensor([first[:-1], width]), device)
    cell = of_grid[0][number] + tokens.row * of_grid[1][number]
    on_grid = tokens.valid & (tokens.grid >= 0)
    return to_device(torch.cat(ranks), device)[(cell + tokens.column).masked_fill(~on_grid, 0)], on_grid
