"""How far each token is from the mean direction of its sample, in two Triton launches and without a wide copy."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from foveate.kernels.common import TOKENS


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
