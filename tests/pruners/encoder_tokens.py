"""`VisualTokens` by hand with what a block of the vision encoder shows."""

from __future__ import annotations

import dataclasses

import torch

from foveate.pruners import VisualTokens
from tests.pruners.visual_tokens import visual_tokens


def encoder_tokens(grids, blocks: int = 1) -> VisualTokens:
    """Two samples' tokens with outputs of a block and attention of `blocks` blocks; zeros for padding."""
    tokens = visual_tokens(grids)
    shape = tokens.valid.shape
    return dataclasses.replace(
        tokens,
        vision=(torch.randn(*shape, 6).masked_fill(~tokens.valid[..., None], 0),),
        received=tuple(torch.rand(shape).masked_fill(~tokens.valid, 0) for _ in range(blocks)),
        class_received=tuple(torch.rand(shape).masked_fill(~tokens.valid, 0) for _ in range(blocks)),
    )


def best(values, number: int, among) -> list[int]:
    """The `number` largest values' places, in falling order; ties by place."""
    return sorted(among, key=lambda place: (-float(values[place]), place))[:number]


def kept(keep, sample: int) -> list[int]:
    """Places kept of a sample."""
    return keep[sample].nonzero()[:, 0].tolist()
