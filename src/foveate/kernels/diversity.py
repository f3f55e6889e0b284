"""Max-min diversity in one Triton launch: in rounds, all on the device.

A round selects a crowd of the tokens that are farthest from all kept ones, compares it with itself in blocks, picks
from it while its best is farther than anyone outside, and lets everyone catch up with the picks in one block product.
So all features are read once a round, not once a pick. The programs of a sample share the blocks and meet three times
a round; one of them picks. Written for GPUs, and so far only run in Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from foveate.kernels.common import (
    cosines,
    measure,
    meet,
    programs_for,
    rank,
    reciprocal,
    repeats_of,
    together,
)
from foveate.kernels.suppression import to_mean
from foveate.tensors import first_lowest

CROWD = 256  # candidates that a round looks at closely
ROUND = 128  # most picks in a round
SPAN = 512  # tokens that one program compares a few others with, for the first pick


@triton.jit
def _catch_up(features, stride, width, scale, nearest, picks, count, first, last, ROUND: tl.constexpr,
              ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Raise `nearest` of the tokens from `first` to `last` to their cosine to the nearest of the `count` picks."""
    lane = tl.arange(0, ROUND)
    present = lane < count
    pick = tl.load(picks + lane, present, 0, cache_modifier=".cg")
    for start in range(first, last, ROWS):
        token = start + tl.arange(0, ROWS)
        inside = token < last
        near = cosines(features, stride, width, scale, token, inside, pick, present, ROWS, ROUND, WIDTH)
        near = tl.max(tl.where(present[None, :], near, float("-inf")), 1)
        before = tl.load(nearest + token, inside, 0.0, cache_modifier=".cg")
        tl.store(nearest + token, tl.maximum(before, near), inside, cache_modifier=".cg")


@triton.jit
def _choose_crowd(nearest, crowd, value_of, number, WIDE: tl.constexpr, CROWD: tl.constexpr):
    """Write down at most CROWD of the lowest tokens; gives their number and the rank of the best one outside."""
    lane = tl.arange(0, WIDE)
    value = tl.load(nearest + lane, lane < number, float("inf"), cache_modifier=".cg")
    free = value < float("inf")
    least = tl.min(value, 0)
    low = least
    high = tl.max(tl.where(free, value, float("-inf")), 0)
    # A level under which lie between half a crowd and a whole one, by bisection.
    under = tl.sum(free.to(tl.int32), 0)
    level = high
    search = under > CROWD
    if search:
        under = tl.sum((value <= low).to(tl.int32), 0)
        level = low
        search = under < CROWD // 2
    while search:
        middle = low * 0.5 + high * 0.5
        under = tl.sum((value <= middle).to(tl.int32), 0)
        few, many = under < CROWD // 2, under > CROWD
        stuck = (middle <= low) | (middle >= high)  # more ties than a crowd holds: the first of them
        level = tl.where(stuck, high, middle)
        low, high = tl.where(few, middle, low), tl.where(many, middle, high)
        search = (few | many) & (stuck == 0)
    level = tl.where(tl.sum((value < level).to(tl.int32), 0) > CROWD, least, level)
    lower = value < level
    room = CROWD - tl.sum(lower.to(tl.int32), 0)
    # Both counts in one scan: lower ones in the low half of a number, ties in the high half.
    counts = tl.cumsum(tl.where(lower, 1, tl.where((value == level) & free, 65536, 0)), 0)
    ties = (counts >> 16) & 0xFFFF
    place = (counts & 0xFFFF) + tl.minimum(ties, room) - 1
    inside = lower | ((value == level) & free & (ties <= room))
    tl.store(crowd + place, lane, inside, cache_modifier=".cg")
    tl.store(value_of + place, value, inside, cache_modifier=".cg")
    outside = tl.where(inside, float("inf"), value)
    best = tl.min(outside, 0)
    bound = rank(best, tl.min(tl.where(outside == best, lane, WIDE), 0) * CROWD)
    size = tl.sum(inside.to(tl.int32), 0)
    tl.debug_barrier()
    return size, bound


@triton.jit
def _compare_crowd(features, stride, width, scale, crowd, size, gram, part, PROGRAMS: tl.constexpr,
                   CROWD: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """This program's share of the crowd's cosines with itself, (CROWD, CROWD) at `gram`."""
    across = CROWD // TILE
    for tile in range(part, across * across, PROGRAMS):
        row, column = tile // across * TILE + tl.arange(0, TILE), tile % across * TILE + tl.arange(0, TILE)
        if (tile // across * TILE < size) & (tile % across * TILE < size):
            left = tl.load(crowd + row, row < size, 0, cache_modifier=".cg")
            right = tl.load(crowd + column, column < size, 0, cache_modifier=".cg")
            near = cosines(features, stride, width, scale, left, row < size, right, column < size, TILE, TILE, WIDTH)
            tl.store(gram + row[:, None] * CROWD + column[None, :], near, cache_modifier=".cg")


@triton.jit
def _pick(crowd, value_of, size, bound, gram, most, nearest, keep, picks, CROWD: tl.constexpr):
    """Pick from the crowd while its best is before all outside, at most `most`; gives how many."""
    lane = tl.arange(0, CROWD)
    token = tl.load(crowd + lane, lane < size, 0, cache_modifier=".cg")
    value = tl.load(value_of + lane, lane < size, float("inf"), cache_modifier=".cg")
    # The place in the crowd rides along in the rank: one reduction a pick.
    best = tl.min(rank(value, token * CROWD + lane), 0)
    count = 0
    while (best < bound) & (count < most):
        place = (best & (CROWD - 1)).to(tl.int32)
        chosen = ((best & 0xFFFFFFFF) // CROWD).to(tl.int32)
        tl.store(picks + count, chosen, cache_modifier=".cg")
        tl.store(keep + chosen, 1)
        tl.store(nearest + chosen, float("inf"), cache_modifier=".cg")
        near = tl.load(gram + place * CROWD + lane, lane < size, 0.0, cache_modifier=".cg")
        value = tl.where(lane == place, float("inf"), tl.maximum(value, near))
        best = tl.min(rank(value, token * CROWD + lane), 0)
        count += 1
    return count


@triton.jit(do_not_specialize=["number"])
def _rounds(features, scale, nearest, keep, members, given, missing, crowds, values, grams, picks, counts, barriers,
            number, width, sample_stride, stride, PROGRAMS: tl.constexpr, WIDE: tl.constexpr, CROWD: tl.constexpr,
            ROUND: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """All rounds of one sample, by PROGRAMS programs; each owns a slice of the tokens and a copy of the crowd."""
    program = tl.program_id(0)
    sample, part = program // PROGRAMS, program % PROGRAMS
    features += sample.to(tl.int64) * sample_stride
    scale, nearest, keep, members = (
        scale + sample * number, nearest + sample * number, keep + sample * number, members + sample * number
    )  # fmt: skip
    gram = grams + sample * CROWD * CROWD
    crowd, value_of = crowds + program * CROWD, values + program * CROWD
    picks, counts, barrier = picks + sample * ROUND, counts + sample, barriers + sample
    share = tl.cdiv(number, PROGRAMS)
    first = part * share
    last = tl.minimum(first + share, number)

    left = tl.load(missing + sample)
    if left > 0:
        start = tl.load(given + sample)
        for member in range(0, start, ROUND):
            _catch_up(features, stride, width, scale, nearest, members + member, start - member, first, last, ROUND,
                      ROWS, WIDTH)  # fmt: skip
        times = meet(barrier, 1, PROGRAMS)
        while left > 0:
            size, bound = _choose_crowd(nearest, crowd, value_of, number, WIDE, CROWD)
            _compare_crowd(features, stride, width, scale, crowd, size, gram, part, PROGRAMS, CROWD, TILE, WIDTH)
            times = meet(barrier, times, PROGRAMS)
            if part == 0:
                most = tl.minimum(left, ROUND)
                count = _pick(crowd, value_of, size, bound, gram, most, nearest, keep, picks, CROWD)
                tl.store(counts, count, cache_modifier=".cg")
            times = meet(barrier, times, PROGRAMS)
            count = tl.load(counts, cache_modifier=".cg")
            left = tl.where(count > 0, left - count, 0)  # none: nobody is left to pick
            if left > 0:
                _catch_up(features, stride, width, scale, nearest, picks, count, first, last, ROUND, ROWS, WIDTH)
                times = meet(barrier, times, PROGRAMS)


@triton.jit(do_not_specialize=["number"])
def _nearest(features, scale, valid, seeded, nearest, number, width, sample_stride, stride, SPAN: tl.constexpr,
             TILE: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Cosine of TILE tokens to their nearest neighbour among SPAN others, where a sample has no start."""
    sample, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    if tl.load(seeded + sample) == 0:
        lane = tl.arange(0, TILE)
        token = tl.program_id(0) * TILE + lane
        inside = token < number
        features += sample * sample_stride
        scale, valid = scale + sample * number, valid + sample * number
        best = tl.full((TILE,), float("-inf"), tl.float32)
        for first in range(part * SPAN, tl.minimum(part * SPAN + SPAN, number), TILE):
            other = first + lane
            there = tl.load(valid + other, other < number, 0) != 0
            near = cosines(features, stride, width, scale, token, inside, other, there, TILE, TILE, WIDTH)
            beside = there[None, :] & (token[:, None] != other[None, :])
            best = tl.maximum(best, tl.max(tl.where(beside, near, float("-inf")), 1))
        tl.store(nearest + (sample * tl.num_programs(1) + part) * number + token, best, inside)


def _first_pick(features: Tensor, scale: Tensor, valid: Tensor, repeats: Tensor, seeded: Tensor, first: str) -> Tensor:
    """Index (B, 1) of the token to begin with; anything where a sample is `seeded` (B,)."""
    if first == "outlier":
        return to_mean(features, scale, valid).masked_fill_(~valid | repeats, torch.inf).argmin(-1, keepdim=True)
    batch, number, width = features.shape
    tile = 64 if features.dtype != torch.float32 else 32
    parts = triton.cdiv(number, SPAN)
    nearest = torch.full((batch, parts, number), -torch.inf, device=features.device)
    _nearest[(triton.cdiv(number, tile), parts, batch)](
        features, scale, valid.to(torch.int8), seeded.to(torch.int8), nearest, number, width, features.stride(0),
        features.stride(1), SPAN=SPAN, TILE=tile, WIDTH=32 if features.dtype == torch.float32 else 64,
    )  # fmt: skip
    return first_lowest(nearest.amax(1).masked_fill_(~valid | repeats, torch.inf))


def max_min_diversity(
    features: Tensor,
    budget: Tensor,
    start: Tensor,
    valid: Tensor,
    first: str = "published",
    programs: int | None = None,
    crowd: int = CROWD,
    most: int = ROUND,
) -> Tensor:
    """`select.max_min_diversity` of checked arguments, without a read from the device.

    Parameters
    ----------
    features
        (B, N, D) fp32, fp16 or bf16, N at most `dispatch.MOST`.
    budget
        (B,) long, at most the row's valid tokens.
    start, valid
        (B, N) bool, start only where valid.
    first
        As of `select.max_min_diversity`.
    programs
        How many share a sample; None: as many as the GPU runs at once.
    crowd, most
        Candidates and picks of a round: powers of two, from 32 and 16 on.

    Returns
    -------
    Tensor
        keep (B, N) bool.
    """
    features = features if features.stride(-1) == 1 else features.contiguous()
    (batch, number, width), device = features.shape, features.device
    lengths, begin = measure(features)
    scale = reciprocal(lengths)
    strides = (number, width, features.stride(0), features.stride(1))
    repeats = repeats_of(features, lengths, begin, valid)
    keep = start & (start.cumsum(-1) <= budget[:, None])
    seeded = keep.any(-1) | (budget == 0)
    pick = _first_pick(features, scale, valid, repeats, seeded, first)
    keep.scatter_(1, pick, keep.gather(1, pick) | ~seeded[:, None])

    nearest = torch.full((batch, number), -torch.inf, device=device).masked_fill_(keep | ~valid | repeats, torch.inf)
    members = (~keep).to(torch.uint8).argsort(dim=-1, stable=True).int()
    missing = torch.minimum(budget, (valid & ~repeats | keep).sum(-1)) - keep.sum(-1)
    programs = programs or programs_for(features)
    rows = min(64, max(16, triton.next_power_of_2(triton.cdiv(number, programs))))
    whole: dict[str, Any] = {"device": device, "dtype": torch.int32}
    real: dict[str, Any] = {"device": device, "dtype": torch.float32}
    kept = keep.to(torch.int8)
    _rounds[(batch * programs,)](
        features, scale, nearest, kept, members, keep.sum(-1).int(), missing.int(),
        torch.empty(batch * programs, crowd, **whole), torch.empty(batch * programs, crowd, **real),
        torch.empty(batch, crowd, crowd, **real), torch.empty(batch, most, **whole), torch.zeros(batch, **whole),
        torch.zeros(batch, **whole), *strides, PROGRAMS=programs, WIDE=max(16, triton.next_power_of_2(number)),
        CROWD=crowd, ROUND=most, ROWS=rows, TILE=min(32, crowd // 2),
        WIDTH=32 if features.dtype == torch.float32 else 64, num_warps=8 if number <= 8192 else 16,
        **together(programs, device),
    )  # fmt: skip
    keep = kept.bool()
    left = valid & ~keep
    return keep | left & (left.cumsum(-1) <= (budget - keep.sum(-1))[:, None])
