"""Paired bootstrap: every arm answered the same questions, so the questions are what is resampled."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap interval; `None` where the figure is undefined (a share of nothing)."""

    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return plain data for JSON."""
        return asdict(self)


def resample_counts(questions: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Return how often each question is drawn in each bootstrap resample.

    Parameters
    ----------
    questions
        Number of questions `n`.
    resamples
        Number of resamples `R`.
    seed
        Seed of the resampling; the same seed gives the same resamples for every arm.

    Returns
    -------
    ndarray of int, shape (R, n)
        Each row sums to `n`.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(questions, np.full(questions, 1.0 / questions), size=resamples)


def _percentiles(draws: NDArray[np.float64]) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def accuracy_kept(method: ArrayLike, dense: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the accuracy of an arm as a share of the dense model's, with its paired bootstrap interval.

    Parameters
    ----------
    method, dense
        (n,) of 0 and 1. Which questions each got right, in the same order.
    resamples, seed
        See `resample_counts`.
    """
    right, reference = _paired(method, dense)
    if right.size == 0 or reference.sum() == 0:
        return Interval(None, None, None)
    counts = resample_counts(right.size, resamples, seed)
    bottom = counts @ reference
    top = (counts @ right)[bottom > 0]
    low, high = _percentiles(top / bottom[bottom > 0])
    return Interval(float(right.sum() / reference.sum()), low, high)


def accuracy_gap(method: ArrayLike, other: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the accuracy of one arm minus another's, in shares of the questions, with its paired interval.

    Parameters
    ----------
    method, other
        (n,) of 0 and 1. Which questions each got right, in the same order.
    resamples, seed
        See `resample_counts`.
    """
    right, reference = _paired(method, other)
    if right.size == 0:
        return Interval(None, None, None)
    gap = right - reference
    low, high = _percentiles(resample_counts(gap.size, resamples, seed) @ gap / gap.size)
    return Interval(float(gap.mean()), low, high)


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1:
        raise ValueError(f"paired arms need the same questions, got shapes {left.shape} and {right.shape}")
    return left, right
