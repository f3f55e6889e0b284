"""Greedy choice where a token's gain only falls: far fewer comparisons, and the same picks, for a CPU.

The plain loop compares each pick with all tokens, which a CPU does at the speed of its memory. Here a token is
compared with what was picked since its last turn, and only when it may be the next pick: a gain out of date is an
upper bound, so tokens in date whose gain exceeds all bounds are the best of all. Comparing is then a product of
matrices, and the picks inside such a crowd follow from the products of its tokens with each other. torch's inductor
could compile the plain loop instead, but needs a compiler on the user's machine and many seconds at the first call,
and the loop would still read all features for each pick.
"""

from __future__ import annotations

import abc

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveate.select.cosine import Rows

CROWD = 64  # tokens of which picks are made at a time
READY = 16  # fewer in date and above all bounds: others are brought in date first
CHUNK = 96  # tokens brought in date at a time
MANY = 2048  # tokens of a sample, from which on all three are doubled: larger products are worth more than fewer
Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.int64]


class LazyGreedy(abc.ABC):
    """One sample's choice.

    Parameters
    ----------
    rows
        Of N tokens.
    gain
        (N,) to begin with; -inf for what cannot be picked.
    most
        Picks at most.
    """

    def __init__(self, rows: Rows, gain: Tensor, most: int) -> None:
        self.rows, self.gain = rows, gain.numpy().copy()
        self.seen = np.zeros(len(gain), dtype=np.int64)  # picks that a token was compared with
        self.taken = 0
        self.size = 2 if len(gain) >= MANY else 1
        self.basis = gain.new_empty(
            most, rows.features.shape[1]
        )  # what the tokens are compared with, a row for each pick

    @abc.abstractmethod
    def update(self, gain: Array, products: Tensor, news: Tensor | None, index: Index) -> Array:
        """Gains (C,) of the tokens at `index` after products (P, C) with rows of the basis.

        `news` (P, C) bool: those not in yet, None: all.
        """

    @abc.abstractmethod
    def settle(self, rows: Tensor, gain: Array, first: int, bound: float, most: int, index: Index) -> list[int]:
        """Pick `first` and then as long as the best gain exceeds `bound`; `gain` (C,) is brought in date in place.

        The picks' rows of the basis are written from `self.taken` on. The tokens are those at `index`.
        """

    def run(self, floor: float = -np.inf) -> list[int]:
        """Pick as many tokens as there is room for, or until the best gain is at most `floor`."""
        picks: list[int] = []
        while self.taken < len(self.basis):
            index, first, bound = self._crowd(floor)
            if not len(index):
                break
            gain = self.gain[index]
            place = int(np.searchsorted(index, first))
            rows = self.rows.take(torch.from_numpy(index))
            chosen = self.settle(rows, gain, place, max(bound, floor), len(self.basis) - self.taken, index)
            gain[chosen] = -np.inf
            self.taken += len(chosen)
            self.gain[index], self.seen[index] = gain, self.taken
            picks += index[chosen].tolist()
        return picks

    def _crowd(self, floor: float) -> tuple[Index, int, float]:
        """The best tokens in date by index, the best of them, and the highest gain that any other may have."""
        while True:
            fresh = self.seen == self.taken
            stale = np.where(fresh, -np.inf, self.gain)
            bound = stale.max(initial=-np.inf)
            ready = np.flatnonzero(fresh & (self.gain > max(bound, floor)))
            if len(ready) >= READY * self.size or bound <= floor:
                break
            self._catch_up(_best(stale, np.flatnonzero(stale > floor), CHUNK * self.size))
        if not len(ready):
            return ready, 0, bound
        first = int(ready[self.gain[ready].argmax()])  # of equal ones the lowest index
        if len(ready) > CROWD * self.size:
            index = _best(self.gain, ready, CROWD * self.size)
            left = np.setdiff1d(ready, index, assume_unique=True)
            bound = max(bound, self.gain[left].max())
            if first not in index:  # then all of them are as good as it
                index[0] = first
            ready = np.sort(index)
        return ready, first, float(bound)

    def _catch_up(self, index: Index) -> None:
        seen = self.seen[index]
        start = int(seen.min())
        products = self.rows.compare(self.basis[start : self.taken], torch.from_numpy(index))
        news = None
        if seen.max() > start:
            news = torch.arange(start, self.taken)[:, None] >= torch.from_numpy(seen)
        self.gain[index] = self.update(self.gain[index], products, news, index)
        self.seen[index] = self.taken


class Capped(LazyGreedy):
    """A choice in which a token's gain is the least of what it is worth beside each pick; rows of length one."""

    @abc.abstractmethod
    def beside(self, products: Tensor, index: Index) -> Tensor:
        """What the tokens at `index` are worth (P, C) beside picks, by their products (P, C) with these; used up."""

    def update(self, gain: Array, products: Tensor, news: Tensor | None, index: Index) -> Array:
        return np.minimum(gain, self.beside(products, index).amin(0).numpy())

    def settle(self, rows: Tensor, gain: Array, first: int, bound: float, most: int, index: Index) -> list[int]:
        worth = self.beside(rows @ rows.T, index).numpy()
        chosen, place = [], first
        while True:
            chosen.append(place)
            np.minimum(gain, worth[place], out=gain)
            gain[place] = -np.inf
            place = int(gain.argmax())
            if len(chosen) == most or not gain[place] > bound:
                break
        torch.index_select(rows, 0, torch.tensor(chosen), out=self.basis[self.taken : self.taken + len(chosen)])
        return chosen


def _best(gain: Array, among: Index, count: int) -> Index:
    """Up to `count` of the indices, those with the highest gains."""
    if len(among) <= count:
        return among
    return among[np.argpartition(gain[among], len(among) - count)[-count:]]
