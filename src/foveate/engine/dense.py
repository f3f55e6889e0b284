"""Between the tokens that are left and the dense prompt: what the model hands out, and what it would add."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.engine.forward_pass import Frame


def at_dense_length(hidden: Tensor, frame: Frame) -> Tensor:
    """(B, L, D) of the states (B, n, D) that are left, zero where a token was dropped; without added tokens.

    Where the decoder went on with the last places only, as many as those.
    """
    frame.follow(hidden)
    index = frame.places(hidden.shape[0], hidden.device)
    alive = frame.alive if frame.alive is not None else torch.ones_like(index, dtype=torch.bool)
    batch = torch.arange(hidden.shape[0], device=hidden.device)[:, None].expand_as(index)
    length = frame.length if frame.newest is None else frame.newest
    full = hidden.new_zeros(hidden.shape[0], length, hidden.shape[-1])
    return full.index_put((batch[alive], index[alive] - (frame.length - length)), hidden[alive])


def add_features(hidden: Tensor, frame: Frame, number: int) -> Tensor:
    """(B, n, D) states behind layer `number`, with what the family adds there to the visual tokens that are left."""
    if frame.additions is None:
        return hidden
    frame.follow(hidden)
    mask = frame.additions.mask.to(hidden.device)
    value = frame.additions.values[number].to(hidden.device, hidden.dtype)
    if frame.index is not None:
        rank = (mask.flatten().cumsum(0) - 1).view_as(mask)
        inside = frame.index.clamp(max=frame.length - 1)
        there = frame.index < frame.length
        if frame.alive is not None:
            there = there & frame.alive
        mask = mask.gather(1, inside) & there
        value = value[rank.gather(1, inside)[mask]]
    hidden = hidden.clone()
    hidden[mask, :] = hidden[mask, :] + value
    return hidden
