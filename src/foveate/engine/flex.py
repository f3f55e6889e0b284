"""Masks of flex attention: not a tensor but a function of (sample, head, row, column), summed up in blocks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


def pick_block_mask(
    mask: BlockMask, rows: Tensor, slots: Tensor, length: int, last: Tensor | None, first: int, column: int
) -> BlockMask:
    """The mask for the rows and key slots that are there; the parameters are those of `pick_mask`."""
    dense_rows, dense_keys = mask.seq_lengths
    row_start, start = length - dense_rows, max(length - dense_keys, 0)
    seen_from = rows if last is None else torch.where(rows >= length, last[:, None], rows)
    seen_from = (seen_from - row_start).clamp(min=0)
    columns = slots.clamp(start, length - 1) - start
    there, added, alive = slots >= max(start, first), slots >= length, rows >= 0

    def picked(sample: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        visible = mask.mask_mod(sample, head, seen_from[sample, row], columns[sample, key])
        if last is not None:  # the method's own tokens: for the rows behind them alone
            behind = slots[sample, key] <= rows[sample, row]
            visible = torch.where(added[sample, key], behind, visible)
        own = key == row + column
        return torch.where(alive[sample, row], visible & there[sample, key], own)

    # compiled, as transformers does it; otherwise the whole mask is a tensor for a moment
    create = torch.compile(create_block_mask) if rows.is_cuda else create_block_mask
    return create(
        picked,
        len(rows),
        None,
        rows.shape[1],
        slots.shape[1],
        device=rows.device,
        BLOCK_SIZE=mask.BLOCK_SIZE,
    )


def visible_keys(mask: BlockMask, rows: Tensor, keys: int) -> Tensor:
    """(B, 1, R, K) bool, which keys the rows (B, R) see."""
    sample = torch.arange(len(rows), device=rows.device)[:, None, None]
    key = torch.arange(keys, device=rows.device)[None, None]
    visible = mask.mask_mod(sample, torch.zeros_like(sample), rows[:, :, None], key)
    return visible.expand(*rows.shape, keys)[:, None]
