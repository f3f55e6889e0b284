"""Farthest points on a CPU: the picks of the plain loop with far fewer comparisons."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foveate.select.checks import wide
from foveate.select.cosine import UnitRows, unit_rows
from foveate.select.lazy import Array, LazyGreedy

WORTH = 100_000_000  # multiplications of the plain loop: with fewer it is the faster one, at 64 to 3,584 features


def farthest_points(features: Tensor, k: int, start: Tensor, valid: Tensor, repeats: Tensor) -> Tensor:
    """One sample's `max_min_diversity`, without repeated tokens: it may fall short of k by them.

    Parameters
    ----------
    features
        (N, D) of any floating-point type.
    start, valid, repeats
        (N,) bool; at most k of `start`.
    """
    unit, keep = UnitRows(features), start.clone()
    if not bool(keep.any()):
        outlier = unit.compare(unit.mean(valid)[None], None)[0].masked_fill_(~valid | repeats, torch.inf).argmin()
        keep[outlier] = True
    nearest = unit.inverse.new_full(keep.shape, -torch.inf)
    for part in keep.nonzero()[:, 0].split(CHUNK):
        torch.maximum(nearest, unit.compare(unit.take(part), None).amax(0), out=nearest)
    nearest.masked_fill_(keep | ~valid | repeats, torch.inf)
    missing = min(k - int(keep.sum()), int(nearest.isfinite().sum()))
    if features.numel() * missing < WORTH:
        return _loop(unit_rows(wide(features)), nearest, keep, missing)
    keep[Farthest(unit, -nearest, missing).run()] = True
    return keep


def _loop(unit: Tensor, nearest: Tensor, keep: Tensor, missing: int) -> Tensor:
    for step in range(missing):
        pick = int(nearest.argmin())
        keep[pick] = True
        nearest[pick] = torch.inf
        if step < missing - 1:
            torch.maximum(nearest, unit @ unit[pick], out=nearest)
    return keep


class Farthest(LazyGreedy):
    """Max-min diversity: the gain is minus the cosine to the nearest kept token; rows of length one."""

    def update(self, gain: Array, products: Tensor, news: Tensor | None) -> Array:
        return np.minimum(gain, -products.amax(0).numpy())

    def settle(self, rows: Tensor, gain: Array, first: int, bound: float, most: int) -> list[int]:
        away = -(rows @ rows.T).numpy()
        chosen, place = [], first
        while True:
            chosen.append(place)
            np.minimum(gain, away[place], out=gain)
            gain[place] = -np.inf
            place = int(gain.argmax())
            if len(chosen) == most or not gain[place] > bound:
                break
        torch.index_select(rows, 0, torch.tensor(chosen), out=self.basis[self.taken : self.taken + len(chosen)])
        return chosen
