"""Greedy MAP of a low-rank determinantal point process in one Triton launch.

Each token carries the part of it that every pick so far explains, one number a pick: the rows of the growing Cholesky
factor (Chen, Zhang, Zhou 2018, arXiv 1709.05135). A pick is then one pass over the factors, and the programs of a
sample, each with a slice of the tokens, meet once a pick. Written for GPUs, and so far only run in Triton's
interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from foveate.kernels.common import measure, meet, programs_for, rank, repeats_of, together
from foveate.tensors import best

EXHAUSTED = 1e-6  # of the row's largest |F_j|²: a residual that small is rounding
NOBODY = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def _best(left, first, last, ROWS: tl.constexpr):
    """Rank of the largest residual among the tokens from `first` to `last`."""
    best = tl.full((), NOBODY, tl.int64)
    for start in range(first, last, ROWS):
        token = start + tl.arange(0, ROWS)
        value = tl.load(left + token, token < last, float("-inf"), cache_modifier=".cg")
        best = tl.minimum(best, tl.min(rank(-value, token), 0))
    return best


@triton.jit
def _explain(factors, stride, width, lengths, left, parts, depth, step, pick, residual, first, last,
             ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Take what `pick` explains from the residuals of the tokens from `first` to `last`; gives the best one left."""
    lane = tl.arange(0, WIDTH)[None, :]
    root = tl.sqrt_rn(residual)
    best = tl.full((), NOBODY, tl.int64)
    for start in range(first, last, ROWS):
        token = start + tl.arange(0, ROWS)
        inside = token < last
        # a row without direction may hold NaN
        real = (inside & (tl.load(lengths + token, inside, 0.0) > 0))[:, None]
        total = tl.zeros((ROWS, WIDTH), tl.float32)
        for column in range(0, width, WIDTH):
            there = column + lane < width
            own = tl.load(factors + token[:, None] * stride + column + lane, real & there, 0.0).to(tl.float32)
            its = tl.load(factors + pick * stride + column + lane, there, 0.0).to(tl.float32)
            total += own * its
        own_parts = parts + token.to(tl.int64)[:, None] * depth
        for column in range(0, step, WIDTH):
            there = column + lane < step
            own = tl.load(own_parts + column + lane, inside[:, None] & there, 0.0, cache_modifier=".cg")
            its = tl.load(parts + pick.to(tl.int64) * depth + column + lane, there, 0.0, cache_modifier=".cg")
            total -= own * its
        part = tl.div_rn(tl.sum(total, 1), root)
        tl.store(parts + token.to(tl.int64) * depth + step, part, inside, cache_modifier=".cg")
        value = tl.load(left + token, inside, float("-inf"), cache_modifier=".cg") - part * part
        value = tl.where(token == pick, float("-inf"), value)
        tl.store(left + token, value, inside, cache_modifier=".cg")
        best = tl.minimum(best, tl.min(rank(-value, token), 0))
    return best


@triton.jit(do_not_specialize=["number"])
def _steps(factors, lengths, left, floor, budget, keep, parts, bests, barriers, number, width, sample_stride, stride,
           depth, PROGRAMS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """All picks of one sample, by PROGRAMS programs; each owns a slice of the tokens."""
    program = tl.program_id(0)
    sample, part = program // PROGRAMS, program % PROGRAMS
    factors += sample.to(tl.int64) * sample_stride
    lengths, left, keep = lengths + sample * number, left + sample * number, keep + sample * number
    parts += sample.to(tl.int64) * number * depth
    bests, barrier = bests + sample * 2 * PROGRAMS, barriers + sample
    share = tl.cdiv(number, PROGRAMS)
    first = part * share
    last = tl.minimum(first + share, number)
    least, most = tl.load(floor + sample), tl.minimum(tl.load(budget + sample), depth)
    slot = tl.arange(0, SLOTS)
    own = _best(left, first, last, ROWS)
    step, times = tl.full((), 0, tl.int32), tl.full((), 1, tl.int32)
    going = most > 0
    while going:
        # Two sets of slots in turns: a program may be a step ahead of one that still reads.
        mine = bests + (step % 2) * PROGRAMS
        tl.store(mine + part, own, cache_modifier=".cg")
        times = meet(barrier, times, PROGRAMS)
        top = tl.min(tl.load(mine + slot, slot < PROGRAMS, NOBODY, cache_modifier=".cg"), 0)
        pick = (top & 0xFFFFFFFF).to(tl.int32)
        bits = (top >> 32).to(tl.int32)
        residual = -((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True))
        going = residual > least
        if going:
            if part == 0:
                tl.store(keep + pick, 1)
            step += 1
            going = step < most
            if going:
                own = _explain(factors, stride, width, lengths, left, parts, depth, step - 1, pick, residual, first,
                               last, ROWS, WIDTH)  # fmt: skip


def low_rank_dpp(
    factors: Tensor, budget: Tensor, valid: Tensor, most: int | None = None, programs: int | None = None
) -> Tensor:
    """`select.low_rank_dpp` of checked arguments, without a read from the device.

    Parameters
    ----------
    factors
        (B, N, D) fp32, fp16 or bf16.
    budget
        (B,) long, at most the row's valid tokens.
    valid
        (B, N) bool.
    most
        No budget is larger, where the host knows that. Beside the factors, N x min(N, D, most) numbers are held for
        each row of the batch.
    programs
        How many share a sample; None: as many as the GPU runs at once.

    Returns
    -------
    Tensor
        keep (B, N) bool.
    """
    factors = factors if factors.stride(-1) == 1 else factors.contiguous()
    (batch, number, width), device = factors.shape, factors.device
    lengths, begin = measure(factors)
    gain = lengths.square()
    left = gain.masked_fill(~valid, -torch.inf)
    floor = EXHAUSTED * left.amax(-1).clamp(min=0)
    left = left.masked_fill_(repeats_of(factors, lengths, begin, valid), -torch.inf)
    depth = min(number, width, number if most is None else max(most, 1))  # no more picks than that add anything
    programs = programs or programs_for(factors)
    keep = torch.zeros(batch, number, device=device, dtype=torch.int8)
    bests = torch.empty(batch, 2, programs, device=device, dtype=torch.int64)
    _steps[(batch * programs,)](
        factors, lengths, left, floor, budget.int().contiguous(), keep,
        torch.empty(batch, number, depth, device=device), bests, torch.zeros(batch, device=device, dtype=torch.int32),
        number, width, factors.stride(0), factors.stride(1), depth,
        PROGRAMS=programs, SLOTS=triton.next_power_of_2(programs), ROWS=16, WIDTH=128, num_warps=8,
        **together(programs, device),
    )  # fmt: skip
    picked = keep.bool()
    return picked | best(gain, budget - picked.sum(-1), valid & ~picked)
