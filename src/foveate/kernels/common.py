"""Parts of the Triton kernels: an order that settles ties, cosines of a tile, and a barrier between programs.

Imported by the other kernels only, and these only where Triton is about to be used. Kernels are not specialised
to the number of tokens, which differs from prompt to prompt: each time would compile anew.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from foveate.tensors import PREFIX

TOKENS = 16  # that one program measures


@triton.jit
def rank(value, place):
    """Whole numbers (int64) that sort by fp32 value, then by place: their minimum is the lowest index among ties."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)  # -0.0 ties with 0.0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.to(tl.int64) << 32) | place.to(tl.int64)


@triton.jit
def cosines(features, stride, width, scale, left, left_in, right, right_in, L: tl.constexpr, R: tl.constexpr,
            WIDTH: tl.constexpr):  # fmt: skip
    """Cosines (L, R) of tokens `left` (L,) and `right` (R,): products in the features' type, sums in fp32.

    `scale` holds reciprocal lengths, 0 for a token without direction: its cosines are 0 whatever its features hold.
    """
    lane = tl.arange(0, WIDTH)
    total = tl.zeros((L, R), tl.float32)
    for first in range(0, width, WIDTH):
        column = first + lane
        inside = column < width
        a = tl.load(features + left[:, None] * stride + column[None, :], left_in[:, None] & inside[None, :], 0.0)
        b = tl.load(features + right[:, None] * stride + column[None, :], right_in[:, None] & inside[None, :], 0.0)
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    first_scale = tl.load(scale + left, left_in, 0.0)
    second_scale = tl.load(scale + right, right_in, 0.0)
    directed = (first_scale > 0)[:, None] & (second_scale > 0)[None, :]
    return tl.where(directed, total * first_scale[:, None] * second_scale[None, :], 0.0)


@triton.jit
def meet(barrier, times, PROGRAMS: tl.constexpr):
    """Wait until all PROGRAMS of a sample are here for the `times`-th time; gives the next one.

    What was written before is seen after, if read past the L1 cache. The programs must run at once.
    """
    tl.debug_barrier()
    if PROGRAMS > 1:
        tl.atomic_add(barrier, 1, sem="acq_rel", scope="gpu")
        while tl.atomic_add(barrier, 0, sem="acq_rel", scope="gpu") < times * PROGRAMS:
            pass
        tl.debug_barrier()
    return times + 1


@triton.jit(do_not_specialize=["number"])
def _measure(features, lengths, begin, number, width, sample_stride, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr,
             PREFIX: tl.constexpr):  # fmt: skip
    """Of a few tokens: the length (0: no direction) and a weighted sum of the first unit features."""
    sample = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = (token < number)[:, None]
    row = features + sample * sample_stride + token[:, None] * stride
    lane = tl.arange(0, WIDTH)[None, :]
    square = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(0, width, WIDTH):
        value = tl.load(row + first + lane, there & (first + lane < width), 0.0).to(tl.float32)
        square += value * value
    length = tl.sqrt_rn(tl.sum(square, 1))
    usable = (length > 0) & (length < float("inf"))
    safe = tl.where(usable, length, 1.0)
    short = tl.arange(0, PREFIX)[None, :]
    head = tl.load(row + short, there & (short < width), 0.0).to(tl.float32)
    total = tl.sum(tl.div_rn(head, safe[:, None]) * tl.sqrt_rn((short + 1).to(tl.float32)), 1)
    place = sample * number + token
    tl.store(lengths + place, tl.where(usable, length, 0.0), token < number)
    tl.store(begin + place, tl.where(usable, total, 0.0), token < number)


@triton.jit(do_not_specialize=["number"])
def _repeated(features, lengths, order, begin, repeats, number, width, sample_stride, stride, ROWS: tl.constexpr,
              WIDTH: tl.constexpr):  # fmt: skip
    """Compare neighbours in `order` whose beginnings are alike: the later one equals the earlier one to the bit?"""
    sample = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = place + 1 < number
    place += sample * number
    first = tl.load(begin + place, inside, float("inf"))
    suspect = inside & (first == tl.load(begin + place + 1, inside, 0.0)) & (first < float("inf"))
    if tl.sum(suspect.to(tl.int32), 0) > 0:
        one, other = tl.load(order + place, suspect, 0), tl.load(order + place + 1, suspect, 0)
        rows = features + sample * sample_stride
        lane = tl.arange(0, WIDTH)[None, :]
        unlike = tl.zeros((ROWS, WIDTH), tl.int32)
        for start in range(0, width, WIDTH):
            there = suspect[:, None] & (start + lane < width)
            a = tl.load(rows + one[:, None] * stride + start + lane, there, 0.0).to(tl.float32)
            b = tl.load(rows + other[:, None] * stride + start + lane, there, 0.0).to(tl.float32)
            unlike += (a != b).to(tl.int32)
        # rows of zeros are not alike: their cosine is 0
        same = (tl.sum(unlike, 1) == 0) & (tl.load(lengths + sample * number + one, suspect, 0.0) > 0)
        tl.store(repeats + sample * number + other, same.to(tl.int8), suspect)


def measure(features: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths (B, N) of features (B, N, D), 0 for a row without direction, and a sum that equal rows share.

    Both fp32. One launch, which reads the features once.
    """
    batch, number, width = features.shape
    lengths = torch.empty(batch, number, device=features.device, dtype=torch.float32)
    begin = torch.empty_like(lengths)
    _measure[(triton.cdiv(number, TOKENS), batch)](
        features, lengths, begin, number, width, features.stride(0), features.stride(1), ROWS=TOKENS, WIDTH=128,
        PREFIX=PREFIX,
    )  # fmt: skip
    return lengths, begin


def reciprocal(lengths: Tensor) -> Tensor:
    """1 / lengths, and 0 for 0."""
    return torch.where(lengths > 0, lengths.reciprocal(), 0.0)


def repeats_of(features: Tensor, lengths: Tensor, begin: Tensor, valid: Tensor) -> Tensor:
    """As `cosine.repeats_of`, without a read from the device; lengths and begin are `measure`'s."""
    batch, number, width = features.shape
    total, order = begin.masked_fill(~valid, torch.inf).sort(dim=-1, stable=True)
    repeats = torch.zeros(batch, number, device=features.device, dtype=torch.int8)
    _repeated[(triton.cdiv(number, TOKENS), batch)](
        features, lengths, order.int(), total, repeats, number, width, features.stride(0), features.stride(1),
        ROWS=TOKENS, WIDTH=128,
    )  # fmt: skip
    return repeats.bool()


def programs_for(features: Tensor) -> int:
    """Programs that share one sample: all of a batch must run on the GPU at once."""
    batch, number, _ = features.shape
    processors = torch.cuda.get_device_properties(features.device).multi_processor_count
    return max(1, min(processors // batch, triton.cdiv(number, 16)))


def together(programs: int, device: torch.device) -> dict[str, bool]:
    """What to launch with, so that programs that wait for each other run at once."""
    return {"launch_cooperative_grid": True} if programs > 1 and device.type == "cuda" else {}
