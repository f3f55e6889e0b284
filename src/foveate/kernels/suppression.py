"""Greedy suppression in one Triton launch: the blocks of `greedy._greedy`, all on the device.

The programs of a sample share the products of a block of candidates with everything taken before and with itself;
then one of them settles the block. They meet twice a block. Written for GPUs, and so far only run in Triton's
interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from foveate.kernels.common import TOKENS, cosines, measure, meet, programs_for, reciprocal, together

BLOCK = 128  # candidates compared at a time


@triton.jit
def _compare(features, stride, width, scale, order, first, last, taken, count, threshold, alike_to, rivals, part,
             PROGRAMS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """This program's share of the block's comparisons: with the `count` tokens taken before, and with itself.

    `alike_to` (N,) becomes 1 at the places in the order that are too alike to one taken; `rivals` (BLOCK, BLOCK) tells
    who in the block is too alike to whom.
    """
    down: tl.constexpr = BLOCK // TILE
    lane = tl.arange(0, TILE)
    before = tl.cdiv(count, TILE)
    for tile in range(part, down * (before + down), PROGRAMS):
        row, across = tile % down * TILE + lane, tile // down
        place = first + row
        inside = place < last
        token = tl.load(order + place, inside, 0)
        if across < before:
            one = across * TILE + lane
            other = tl.load(taken + one, one < count, 0, cache_modifier=".cg")
            near = cosines(features, stride, width, scale, token, inside, other, one < count, TILE, TILE, WIDTH)
            hits = tl.sum(((near > threshold) & (one < count)[None, :]).to(tl.int32), 1)
            tl.atomic_max(alike_to + place, tl.minimum(hits, 1), inside & (hits > 0))
        else:
            column = (across - before) * TILE + lane
            there = first + column < last
            other = tl.load(order + first + column, there, 0)
            near = cosines(features, stride, width, scale, token, inside, other, there, TILE, TILE, WIDTH)
            rival = rivals + row[:, None] * BLOCK + column[None, :]
            tl.store(rival, (near > threshold).to(tl.int8), cache_modifier=".cg")


@triton.jit
def _settle(order, first, last, alike_to, rivals, taken, count, most, keep, BLOCK: tl.constexpr):
    """Take what may be taken of the block, best candidate first; gives how many are taken in all."""
    lane = tl.arange(0, BLOCK)
    inside = first + lane < last
    free = tl.load(alike_to + first + lane, inside, 1, cache_modifier=".cg") == 0
    best = tl.min(tl.where(free, lane, BLOCK), 0)
    while (best < BLOCK) & (count < most):
        chosen = tl.load(order + first + best)
        tl.store(taken + count, chosen, cache_modifier=".cg")
        tl.store(keep + chosen, 1)
        rival = tl.load(rivals + best * BLOCK + lane, inside, 1, cache_modifier=".cg")
        free = free & (rival == 0) & (lane > best)
        best = tl.min(tl.where(free, lane, BLOCK), 0)
        count += 1
    return count


@triton.jit(do_not_specialize=["number"])
def _walk(features, scale, order, limit, budget, present, keep, taken, alike_to, rivals, counts, barriers,
          number, width, sample_stride, stride, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
          WIDTH: tl.constexpr):  # fmt: skip
    """Walk through one sample's tokens in order, by PROGRAMS programs."""
    program = tl.program_id(0)
    sample, part = program // PROGRAMS, program % PROGRAMS
    features += sample.to(tl.int64) * sample_stride
    scale, order, keep = scale + sample * number, order + sample * number, keep + sample * number
    taken, alike_to, rivals = taken + sample * number, alike_to + sample * number, rivals + sample * BLOCK * BLOCK
    counts, barrier = counts + sample, barriers + sample
    most, end, threshold = tl.load(budget + sample), tl.load(present + sample), tl.load(limit + sample)
    first, count, times = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32), tl.full((), 1, tl.int32)
    while (first < end) & (count < most):
        last = tl.minimum(first + BLOCK, end)
        _compare(features, stride, width, scale, order, first, last, taken, count, threshold, alike_to, rivals, part,
                 PROGRAMS, BLOCK, TILE, WIDTH)  # fmt: skip
        times = meet(barrier, times, PROGRAMS)
        if part == 0:
            total = _settle(order, first, last, alike_to, rivals, taken, count, most, keep, BLOCK)
            tl.store(counts, total, cache_modifier=".cg")
        times = meet(barrier, times, PROGRAMS)
        count = tl.load(counts, cache_modifier=".cg")
        first += BLOCK


def greedy(
    features: Tensor,
    order: Tensor,
    budget: Tensor,
    limit: Tensor,
    valid: Tensor,
    programs: int | None = None,
    block: int = BLOCK,
) -> Tensor:
    """`greedy._greedy` on features as they are, without a read from the device.

    Parameters
    ----------
    features
        (B, N, D) fp32, fp16 or bf16.
    order
        (B, N) long, tokens from the best to the worst, those that are not valid last.
    budget, limit
        (B,) long and (B,) floating point: the most to take, and the cosine above which two are too alike.
    valid
        (B, N) bool.
    programs
        How many share a sample; None: as many as the GPU runs at once.
    block
        Candidates compared at a time: a power of two from 32 on.

    Returns
    -------
    Tensor
        keep (B, N) bool.
    """
    features = features if features.stride(-1) == 1 else features.contiguous()
    (batch, number, width), device = features.shape, features.device
    scale = reciprocal(measure(features)[0])
    programs = programs or programs_for(features)
    whole: dict[str, Any] = {"device": device, "dtype": torch.int32}
    keep = torch.zeros(batch, number, device=device, dtype=torch.int8)
    _walk[(batch * programs,)](
        features, scale, order.int().contiguous(), limit.float().contiguous(), budget.int().contiguous(),
        valid.sum(-1).int(), keep, torch.empty(batch, number, **whole), torch.zeros(batch, number, **whole),
        torch.empty(batch, block, block, device=device, dtype=torch.int8), torch.zeros(batch, **whole),
        torch.zeros(batch, **whole), number, width, features.stride(0), features.stride(1), PROGRAMS=programs,
        BLOCK=block, TILE=min(32, block // 2), WIDTH=32 if features.dtype == torch.float32 else 64, num_warps=4,
        **together(programs, device),
    )  # fmt: skip
    return keep.bool()


@triton.jit(do_not_specialize=["number"])
def _mean(features, weight, mean, number, width, sample_stride, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum of the tokens times their weights, for a few of the features."""
    sample = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    lane = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(0, number, ROWS):
        token = first + lane
        share = tl.load(weight + sample * number + token, token < number, 0.0)
        place = features + sample * sample_stride + token[:, None] * stride + column[None, :]
        inside = (token < number)[:, None] & (column < width)[None, :]
        # a token of no weight may hold NaN
        rows = tl.where(share[:, None] != 0, tl.load(place, inside, 0.0).to(tl.float32), 0.0)
        total += rows * share[:, None]
    tl.store(mean + sample * width + column, tl.sum(total, 0), column < width)


@triton.jit(do_not_specialize=["number"])
def _along(features, scale, mean, product, number, width, sample_stride, stride, ROWS: tl.constexpr,
           WIDTH: tl.constexpr):  # fmt: skip
    """Product of a few unit tokens with their sample's mean."""
    sample = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = (token < number)[:, None]
    lane = tl.arange(0, WIDTH)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(0, width, WIDTH):
        inside = first + lane < width
        place = features + sample * sample_stride + token[:, None] * stride + first + lane[None, :]
        direction = tl.load(mean + sample * width + first + lane, inside, 0.0)
        total += tl.load(place, there & inside[None, :], 0.0).to(tl.float32) * direction[None, :]
    length = tl.load(scale + sample * number + token, token < number, 0.0)
    tl.store(product + sample * number + token, tl.where(length == 0, 0.0, tl.sum(total, 1) * length), token < number)


def to_mean(features: Tensor, scale: Tensor, valid: Tensor) -> Tensor:
    """Product (B, N) of each unit token with the sum of its sample's valid ones."""
    batch, number, width = features.shape
    strides = (number, width, features.stride(0), features.stride(1))
    mean = torch.empty(batch, width, device=features.device, dtype=torch.float32)
    product = torch.empty_like(scale)
    _mean[(triton.cdiv(width, 32), batch)](features, scale * valid, mean, *strides, ROWS=64, WIDTH=32)
    grid = triton.cdiv(number, TOKENS), batch
    _along[grid](features, scale, mean, product, *strides, ROWS=TOKENS, WIDTH=128)
    return product
