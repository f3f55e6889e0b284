"""The token whose nearest neighbour is farthest, without an N x N matrix: where max-min diversity begins."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.select.cosine import UnitRows
from foveate.tensors import alike, first_lowest

BLOCK = 512  # tokens compared with all others at a time
CHUNK = 64  # tokens that the others are compared with at first; twice as many each time, up to BLOCK
FEW = 16  # tokens compared with all others between two chunks
SHRUNK = 0.6  # with so few candidates left, only theirs are copied


def most_isolated(unit: Tensor, valid: Tensor, pickable: Tensor) -> Tensor:
    """Index (B, 1) of the pickable token whose nearest neighbour is farthest; no read from the device.

    All pairs are compared, in blocks.

    Parameters
    ----------
    unit
        (B, N, D) rows of length one.
    valid, pickable
        (B, N) bool: tokens that count as neighbours, and those among them that may be picked.
    """
    nearest = unit.new_empty(unit.shape[:2])
    place = torch.arange(unit.shape[1], device=unit.device)
    for first in range(0, unit.shape[1], BLOCK):
        block = slice(first, first + BLOCK)
        cosine = torch.bmm(unit[:, block], unit.mT)
        absent = ~valid[:, None] | (place[block, None] == place)
        nearest[:, block] = cosine.masked_fill_(absent, -torch.inf).amax(-1)
    return first_lowest(nearest.masked_fill_(~pickable, torch.inf))


def most_isolated_of_one(unit: UnitRows, valid: Tensor, pickable: Tensor) -> int:
    """The same token of one sample, for a CPU; valid and pickable (N,).

    What a token is compared with is a lower bound of its cosine to its nearest neighbour, so a token whose bound is
    above the lowest cosine known in full is out. In an image most are out once they were compared with the token
    beside them.
    """
    near = unit.inverse.new_full(valid.shape, -torch.inf)
    done = torch.zeros_like(valid)  # compared with all others
    others = valid.nonzero()[:, 0]
    left = pickable.nonzero()[:, 0]  # candidates, and `rows` theirs
    rows = unit.take(left)
    beside = (rows[1:] * rows[:-1]).sum(1)
    near[left[1:]] = beside
    near[left[:-1]] = near[left[:-1]].maximum(beside)
    chance = torch.randperm(len(others), generator=torch.Generator().manual_seed(0), device=others.device)
    lowest, size, start = torch.inf, CHUNK, 0
    while len(left) and start < len(others):
        part = others[chance[start : start + size]]
        start, size = start + size, min(2 * size, BLOCK)
        cosine = (unit.take(part) @ rows.T).masked_fill_(part[:, None] == left, -torch.inf)
        near[left] = near[left].maximum(cosine.amax(0))

        few = left[near[left].masked_fill(done[left], torch.inf).topk(min(FEW, len(left)), largest=False).indices]
        cosine = unit.compare(unit.take(few), None).masked_fill_(~valid, -torch.inf)
        cosine.scatter_(1, few[:, None], -torch.inf)
        near[left] = near[left].maximum(cosine[:, left].amax(0))
        near[few] = cosine.amax(1)
        done[few] = True
        lowest = min(lowest, float(near[few].min()))

        remain = (near[left] <= lowest + alike(near)) & ~done[left]
        if int(remain.sum()) <= SHRUNK * len(left):
            left, rows = left[remain], rows[remain]
    return int(first_lowest(near.masked_fill_(~pickable, torch.inf)))
