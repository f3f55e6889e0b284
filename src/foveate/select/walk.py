"""Suppression on a CPU: one sample's tokens from the best score to the worst."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foveate.select.checks import wide
from foveate.select.cosine import unit_rows

WALK_BLOCK = 96  # candidates compared at a time


def walk(features: Tensor, order: Tensor, most: int, limit: float) -> Tensor:
    """Take each token whose cosine to all taken before is at most `limit`, until there are `most`.

    A block of candidates is compared with all that were taken before it in one product, and then with each other. Only
    tokens that come up are normalised.

    Parameters
    ----------
    features
        (N, D) of any floating-point type.
    order
        (C,) the candidates' indices, best first.

    Returns
    -------
    Tensor
        The indices taken, best first.
    """
    most = min(most, len(order))
    taken = torch.empty(most, features.shape[1], dtype=torch.promote_types(features.dtype, torch.float32))
    places: list[Tensor] = []
    count = 0
    for index in order.split(WALK_BLOCK):
        block = unit_rows(wide(features.index_select(0, index)))
        if count:
            near = (taken[:count] @ block.T).amax(0)
            left = (near <= limit).nonzero()[:, 0]
            index, block = index[left], block.index_select(0, left)
        chosen = _settle_one(block @ block.T > limit, most - count)
        places.append(index[chosen])
        torch.index_select(block, 0, chosen, out=taken[count : count + len(chosen)])
        count += len(chosen)
        if count == most:
            break
    return torch.cat(places) if places else order[:0]


def _settle_one(alike: Tensor, most: int) -> Tensor:
    """Places, at most `most`, of those not too alike to one taken before; `alike` (C, C) bool, best first."""
    rest = (~alike).numpy()
    active = np.ones(len(rest), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < most and active.any():
        place = int(active.argmax())
        chosen.append(place)
        active &= rest[place]
        active[place] = False
    return torch.tensor(chosen, dtype=torch.long)
