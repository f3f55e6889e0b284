"""Rows of length one, so that a product of two rows is their cosine."""

from __future__ import annotations

from torch import Tensor


def unit_rows(features: Tensor) -> Tensor:
    """Normalise the last dimension of features (..., D); a row of zeros or with a NaN or infinity becomes zeros.

    Such a row has cosine 0 to every other one. Rows are scaled by their largest entry first, so that neither large
    nor small numbers are lost in the square.
    """
    scaled = features / features.abs().amax(-1, keepdim=True)
    unit = scaled / scaled.square().sum(-1, keepdim=True).sqrt()
    return unit.nan_to_num_(nan=0.0)
