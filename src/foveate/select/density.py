"""Density peaks: tokens with many near to them, far from any that have more; and the nearest of them to each token."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.tensors import take_rows

ROWS = 256  # of the distances at a time
EQUAL = 1e-9  # a difference of densities that may be rounding


def density_centres(features: Tensor, centres: Tensor, among: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Choose centres by density peaks, and give each other token the nearest centre.

    With distances d over the root of D, a token's density is exp(-mean d²) to the c tokens nearest to it, itself among
    them; centres are the c tokens with the largest product of density and distance to the nearest denser token, for
    the densest the largest distance of all. Of equally dense ones the first counts as denser.

    Parameters
    ----------
    features
        (B, N, D) floating point.
    centres
        (B,) long on the CPU, how many of each row; at most as many as `among` has.
    among
        (B, N) bool, the tokens that count.
    number
        At least as many as count in any row.

    Returns
    -------
    tuple
        The centres (B, N) bool, and (B, N) long for each other token that counts the column of its centre, else -1.

    Notes
    -----
    Density peaks with nearest neighbours, as SparseVLM (arXiv 2410.04417) has it, without its noise against ties.
    Memory is O(B M) beside the M tokens that count, time O(M² D).
    """
    most = int(centres.max())
    into = torch.full(among.shape, -1, device=among.device)
    if not most:
        return torch.zeros_like(among), into
    columns = torch.argsort((~among).to(torch.uint8), dim=-1, stable=True)[:, :number]
    there = among.gather(1, columns)
    points = take_rows(features, columns).double()  # two tokens that are each other's nearest are equally dense
    wanted = centres.to(among.device)[:, None]
    nearest = torch.arange(most, device=among.device) < wanted
    near = points.new_zeros(there.shape)
    largest = points.new_zeros(len(points), 1)
    scale = points.shape[-1] ** -0.5

    def distances(start: int) -> Tensor:
        return _apart(points[:, start : start + ROWS], points, there) * scale

    # 1. density
    for start in range(0, number, ROWS):
        apart = distances(start)
        squares = apart.topk(min(most, number), dim=-1, largest=False).values.square()
        near[:, start : start + ROWS] = squares.masked_fill(~nearest[:, None, : squares.shape[-1]], 0).sum(-1)
        finite = apart.masked_fill(~there[:, None], 0).masked_fill(~there[:, start : start + ROWS, None], 0)
        largest = torch.maximum(largest, finite.amax((1, 2))[:, None])
    density = (-near / wanted.clamp(min=1)).exp()
    # 2. distance to the nearest denser token
    place = torch.arange(number, device=among.device)
    away = torch.zeros_like(density)
    for start in range(0, number, ROWS):
        mine = density[:, start : start + ROWS, None]
        before = place < place[start : start + ROWS, None]
        above = density[:, None] - mine
        denser = ((above > EQUAL) | (above.abs() <= EQUAL) & before) & there[:, None]
        away[:, start : start + ROWS] = distances(start).masked_fill(~denser, torch.inf).amin(-1)
    away = torch.minimum(away, largest)
    # 3. the best, and the nearest of them to each token
    rank = (density * away).masked_fill(~there, -torch.inf).argsort(dim=-1, descending=True, stable=True)[:, :most]
    chosen = torch.zeros_like(there).scatter(1, rank, nearest[:, : rank.shape[1]])
    others, real = take_rows(points, rank), nearest[:, : rank.shape[1]]
    to = torch.cat([_apart(some, others, real).argmin(-1) for some in points.split(ROWS, 1)], 1)
    goes = columns.gather(1, rank.gather(1, to)).masked_fill(chosen | ~there | (wanted == 0), -1)
    into.scatter_(1, columns, goes)
    return torch.zeros_like(among).scatter(1, columns, chosen), into


def _apart(points: Tensor, others: Tensor, there: Tensor) -> Tensor:
    """(B, M, P) distances to the others that are there, infinity to those that are not."""
    return torch.cdist(points, others).masked_fill(~there[:, None], torch.inf)
