"""Which of a few tokens each token is most like, without the map of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.select.cosine import unit_rows

ROWS = 512  # tokens compared at a time


def likest(features: Tensor, others: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Largest cosine (B, N) of each row to any of the others, and the place (B, N) of that one.

    Of equal ones it is the first; where none is there, they are -inf and 0. Beside the unit vectors of the others
    memory is O(B (N + C)).

    Parameters
    ----------
    features
        (B, N, D) of any floating-point type; cosines are computed in float32. A row of zeros or with a NaN or infinity
        has cosine 0 to every other.
    others
        (B, C, D) likewise.
    there
        (B, C) bool, False for others that do not count.
    """
    batch, number, _ = features.shape
    value = torch.full((batch, number), -torch.inf, device=features.device)
    place = torch.zeros(batch, number, dtype=torch.long, device=features.device)
    if not others.shape[1]:
        return value, place
    unit = unit_rows(others.float())
    for first in range(0, number, ROWS):
        rows = slice(first, first + ROWS)
        cosine = torch.bmm(unit_rows(features[:, rows].float()), unit.mT)
        cosine.masked_fill_(~there[:, None], -torch.inf)
        place[:, rows] = cosine.argmax(-1)
        value[:, rows] = cosine.gather(2, place[:, rows, None])[..., 0]
    return value, place
