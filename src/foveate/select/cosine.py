"""Rows of length one, so that a product of two rows is their cosine."""

from __future__ import annotations

import torch
from torch import Tensor


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
