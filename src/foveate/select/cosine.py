"""Rows of length one, so that a product of two rows is their cosine; rows taken by index; rows that repeat others."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from foveate.tensors import PREFIX, wide

BLOCK = 512  # rows in half precision that are widened at a time


def unit_rows(features: Tensor) -> Tensor:
    """Normalise the last dimension of features (..., D); a row of zeros or with a NaN or infinity becomes zeros.

    Such a row has cosine 0 to every other one. So has one whose squared length is out of range.
    """
    return (features / torch.linalg.vector_norm(features, dim=-1, keepdim=True)).nan_to_num_(0, 0, 0)


class Rows:
    """One sample's rows as they are.

    Parameters
    ----------
    features
        (N, D) float32 or float64.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def take(self, index: Tensor) -> Tensor:
        """Rows (C, D) at index (C,); the caller's own."""
        return self.features.index_select(0, index)  # features[index] takes several times as long

    def compare(self, others: Tensor, index: Tensor | None) -> Tensor:
        """Products (P, C) of others (P, D) with the rows at index (C,); None: with all rows."""
        return others @ (self.features if index is None else self.take(index)).T


class UnitRows(Rows):
    """One sample's rows of length one, in float32 (float64 for float64), made where they are needed.

    A row of zeros, or with a NaN or infinity, becomes zeros.

    Parameters
    ----------
    features
        (N, D) of any floating-point type; not copied, unless a row is not finite.
    """

    def __init__(self, features: Tensor) -> None:
        length = torch.cat([torch.linalg.vector_norm(block, dim=1) for block in _blocks(features)])
        strange = ~length.isfinite()
        self.features = features.masked_fill(strange[:, None], 0) if bool(strange.any()) else features
        self.inverse = length.reciprocal_().masked_fill_(strange | length.isinf(), 0)

    def take(self, index: Tensor) -> Tensor:
        return wide(super().take(index)).mul_(self.inverse[index, None])

    def compare(self, others: Tensor, index: Tensor | None) -> Tensor:
        if index is not None:
            return (others @ wide(super().take(index)).T).mul_(self.inverse[index])
        return torch.cat([others @ block.T for block in _blocks(self.features)], 1).mul_(self.inverse)

    def mean(self, valid: Tensor) -> Tensor:
        """Sum (D,) of the rows that are valid (N,)."""
        weight = self.inverse.masked_fill(~valid, 0).split(BLOCK if self._half else len(self) or 1)
        return sum(part @ block for part, block in zip(weight, _blocks(self.features), strict=True))

    @property
    def _half(self) -> bool:
        return self.features.element_size() < 4


def _blocks(features: Tensor) -> Iterator[Tensor]:
    """Half-precision rows widened block by block; others all at once."""
    size = BLOCK if features.element_size() < 4 else len(features) or 1
    return (wide(block) for block in features.split(size))


def repeats_of(rows: Tensor, valid: Tensor) -> Tensor:
    """(B, N) bool, valid tokens that equal an earlier valid one to the bit, as the newline tokens of LLaVA-NeXT do.

    Such a token adds nothing to the earlier one: it comes last. Left among the others, rounding would decide between
    the two, and that differs with the shape of the batch.
    """
    # rows that begin alike have equal sums, and with such weights hardly any others do
    begin = wide(rows[..., :PREFIX])
    weights = torch.arange(1, begin.shape[-1] + 1, device=rows.device, dtype=begin.dtype).sqrt()
    total, order = (begin * weights).sum(-1).masked_fill(~valid, torch.inf).sort(dim=-1, stable=True)
    suspect = (total[:, 1:] == total[:, :-1]) & total[:, 1:].isfinite()
    sample, place = suspect.nonzero(as_tuple=True)
    if len(sample):
        number = rows.shape[1]
        flat = rows.reshape(-1, rows.shape[2])
        one, other = (flat.index_select(0, sample * number + order[sample, place + after]) for after in (0, 1))
        # rows of zeros are not alike: their cosine is 0
        suspect[sample, place] = (one == other).all(-1) & (one != 0).any(-1)
    return torch.zeros_like(valid).scatter_(1, order[:, 1:], suspect)
