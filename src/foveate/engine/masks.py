"""The attention mask of the tokens that are left, picked out of the one the model made for the dense prompt."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


def pick_mask(
    mask: Tensor | BlockMask | None,
    rows: Tensor,
    slots: Tensor,
    length: int,
    last: Tensor | None,
    padded: bool,
    flat: bool,
    first: int = 0,
    column: int | None = None,
) -> Tensor | BlockMask | None:
    """Mask for the rows and key slots that are there.

    Parameters
    ----------
    mask
        The dense one: None (causal, no padding), (B or 1, K) of a flash backend, or (B or 1, 1, L, K), bool or
        additive, or what flex attention takes. Its columns are the newest positions: all, or a sliding window's.
    rows
        (B, n) long, dense positions of the query tokens, -1 for padding; positions from `length` on are tokens that
        the method added after the prompt.
    slots
        (B, m) long, dense positions of the keys, -1 for padding.
    length
        Dense positions that the mask covers: past and prompt.
    last
        (B,) long, dense position of the last prompt token, whose view an added token takes over; None without added
        tokens.
    padded
        Whether any slot is padding.
    flat
        True for backends that take a (B, K) padding mask (flash attention).
    first
        Dense position from which on the cache of the dense run holds keys: not 0 for a sliding window.
    column
        Which slot is the first row's; those after the rows are free. By default the rows are the last slots.
    """
    queries, keys = rows.shape[1], slots.shape[1]
    column = keys - queries if column is None else column
    if isinstance(mask, BlockMask):
        return pick_block_mask(mask, rows, slots, length, last, first, column)
    if mask is None:
        # no key that the dense run's cache has forgotten; samples of a batch may hold different ones
        inside = first == 0 or (len(rows) == 1 and keys == length - first)
        alone = column == 0 and (queries == keys or not flat)  # free slots come last: causality hides them
        if not padded and inside and (queries == 1 or alone):
            return None
        if flat:
            return (slots >= first).to(torch.int64)[:, : column + queries]
        visible = (slots[:, None, :] <= rows[:, :, None]) & (slots >= first)[:, None, :]
        return (visible | _own_slot(rows, keys, column))[:, None]
    mask = mask.to(slots.device)
    start = max(length - mask.shape[-1], 0)  # dense position of the first column
    columns, outside = slots.clamp(start, length - 1) - start, slots < max(start, first)
    if mask.ndim == 2:
        flags = mask.expand(rows.shape[0], -1).gather(1, columns).masked_fill(outside, 0)
        flags = flags if last is None else flags.masked_fill(slots >= length, 1)
        return flags[:, : column + queries]
    dense_rows = rows.clamp(min=0) if last is None else torch.where(rows >= length, last[:, None], rows.clamp(min=0))
    dense_rows = (dense_rows - (length - mask.shape[2])).clamp(min=0)  # the mask's rows are the newest positions
    picked = mask.expand(rows.shape[0], -1, -1, -1)
    picked = picked.gather(2, dense_rows[:, None, :, None].expand(-1, picked.shape[1], -1, picked.shape[3]))
    picked = picked.gather(3, columns[:, None, None, :].expand(-1, picked.shape[1], queries, -1))
    hidden = outside[:, None, None, :]
    if last is not None:
        hidden = hidden | ((slots >= length)[:, None, :] & (slots[:, None, :] > rows[:, :, None]))[:, None]
    own = _own_slot(rows, keys, column)[:, None]
    if picked.dtype == torch.bool:
        if last is not None:
            picked = picked | (slots >= length)[:, None, None, :]
        return (picked & ~hidden) | own
    if last is not None:
        picked = picked.masked_fill((slots >= length)[:, None, None, :], 0)
    return picked.masked_fill(hidden, torch.finfo(picked.dtype).min).masked_fill(own, 0)


def _own_slot(rows: Tensor, keys: int, column: int) -> Tensor:
    """(B, n, m) bool, true where a padding row meets its own slot: it must see something, or its softmax is NaN."""
    queries = rows.shape[1]
    diagonal = torch.eye(queries, dtype=torch.bool, device=rows.device)
    diagonal = torch.nn.functional.pad(diagonal, (column, keys - queries - column))
    return diagonal & (rows < 0)[:, :, None]


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
        if last is not None:  # the method's own tokens: for the rows after them alone
            after = slots[sample, key] <= rows[sample, row]
            visible = torch.where(added[sample, key], after, visible)
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
