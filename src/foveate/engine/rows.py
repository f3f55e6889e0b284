"""Products of queries and keys where few of them are wanted: never more than a block at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.select import fused

KEYS = 1024  # turned into fp32 at a time
QUERIES = 128  # rows of a whole attention map at a time


def row_logits(query: Tensor, key: Tensor, scale: float, softcap: float | None = None) -> Tensor:
    """Scaled products of a few query rows with all keys, in fp32; no fp32 copy of the keys, no repeat for their heads.

    Parameters
    ----------
    query, key
        (B, H, R, D) and (B, G, K, D) with H a multiple of G, of any floating-point type.
    softcap
        Where given, products s become softcap · tanh(s / softcap).

    Returns
    -------
    Tensor
        (B, H, R, K).
    """
    if not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)):
        scores = fused.attempt("row_logits", key, lambda: _fused_logits(query, key, scale, softcap), _fused_agrees)
        if scores is not None:
            return scores
    batch, heads, rows, size = query.shape
    grouped = (query.float() * scale).reshape(batch, key.shape[1], -1, size)
    if key.dtype == torch.float32:
        scores = torch.matmul(grouped, key.mT)
    else:
        scores = torch.cat([torch.matmul(grouped, block.float().mT) for block in key.split(KEYS, 2)], -1)
    scores = scores.view(batch, heads, rows, key.shape[2])
    return torch.tanh(scores / softcap) * softcap if softcap else scores


def _fused_logits(query: Tensor, key: Tensor, scale: float, softcap: float | None) -> Tensor:
    from foveate.engine import fused_rows

    return fused_rows.row_logits(query.to(key.dtype), key, scale, softcap)


def _fused_agrees(device: torch.device, dtype: torch.dtype) -> bool:
    from foveate.engine import fused_rows

    return fused_rows.agrees(device, dtype)


def column_sums(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Attention that each token of an encoder receives, summed over all queries: the columns of softmax(Q Kᵀ).

    The map is made a few rows at a time, so that memory is O(B H L), not O(B H L²).

    Parameters
    ----------
    query, key
        (B, H, L, D) and (B, G, L, D) with H a multiple of G.
    mask
        (B or 1, 1, L, L), bool or additive; a query that does not see itself is padding and counts for nothing. None:
        every query sees every key.

    Returns
    -------
    Tensor
        (B, H, L) in fp32; a head's sums add up to the number of queries.
    """
    sums = query.new_zeros(query.shape[:3], dtype=torch.float32)
    for first in range(0, query.shape[2], QUERIES):
        logits = row_logits(query[:, :, first : first + QUERIES], key, scale)
        if mask is None:
            sums += logits.softmax(-1).sum(2)
            continue
        rows = mask[:, :, first : first + QUERIES]
        hidden = ~rows if rows.dtype == torch.bool else rows < -1
        real = ~hidden.diagonal(first, 2, 3)[..., None]
        sums += (logits.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1) * real).sum(2)
    return sums
