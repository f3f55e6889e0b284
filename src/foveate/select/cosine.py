"""Rows of length one, so that a product of two rows is their cosine; rows taken by index; rows that repeat others."""

from __future__ import annotations

import torch
from torch import Tensor

PREFIX = 64  # features by which equal tokens are looked for


def unit_rows(features: Tensor) -> Tensor:
    """Normalise the last dimension of features (..., D); a row of zeros or with a NaN or infinity becomes zeros.

    Such a row has cosine 0 to every other one.
    """
    return (features / torch.linalg.vector_norm(features, dim=-1, keepdim=True)).nan_to_num_(nan=0.0)


def take_rows(features: Tensor, index: Tensor) -> Tensor:
    """Rows (B, C, D) of features (B, N, D) at index (B, C); whole rows are copied, which `gather` does by elements."""
    batch, number, width = features.shape
    first = torch.arange(0, batch * number, number, device=index.device)[:, None]
    return features.reshape(-1, width).index_select(0, (index + first).flatten()).view(batch, -1, width)


def repeats_of(rows: Tensor, valid: Tensor) -> Tensor:
    """(B, N) bool, valid tokens that equal an earlier valid one to the bit, as the newline tokens of LLaVA-NeXT do.

    Such a token adds nothing to the earlier one: it comes last. Left among the others, rounding would decide between
    the two, and that differs with the shape of the batch.
    """
    # rows that begin alike have equal sums, and with such weights hardly any others do
    begin = rows[..., :PREFIX]
    weights = torch.arange(1, begin.shape[-1] + 1, device=rows.device, dtype=rows.dtype).sqrt()
    total, order = (begin * weights).sum(-1).masked_fill(~valid, torch.inf).sort(dim=-1, stable=True)
    suspect = (total[:, 1:] == total[:, :-1]) & total[:, 1:].isfinite()
    if bool(suspect.any()):
        ordered = take_rows(rows, order)
        # rows of zeros are not alike: their cosine is 0
        suspect &= (ordered[:, 1:] == ordered[:, :-1]).all(-1) & (ordered[:, 1:] != 0).any(-1)
    return torch.zeros_like(valid).scatter_(1, order[:, 1:], suspect)
