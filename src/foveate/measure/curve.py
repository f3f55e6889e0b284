"""A figure measured at a few sizes, and read between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foveate.errors import FoveateError


class RatesError(FoveateError, ValueError):
    """Rates, or a file of them, are not what they should be; the message says what is wrong."""


@dataclass(frozen=True)
class Curve:
    """Measured points with straight lines between them, both axes logarithmic.

    Parameters
    ----------
    points : tuple of (float, float)
        (size, value), both positive, by ascending size.
    grows : bool
        Beyond the largest size go on along the last line; else stay at the last value. Below the smallest size the
        first value holds.

    Raises
    ------
    RatesError
        When there is no point, or they are not positive and ascending.
    """

    points: tuple[tuple[float, float], ...]
    grows: bool = False

    def __post_init__(self) -> None:
        try:
            points = tuple((float(size), float(value)) for size, value in self.points)
        except (TypeError, ValueError):
            raise RatesError(f"a curve is a list of (size, value), got {self.points!r}") from None
        object.__setattr__(self, "points", points)
        sizes = [size for size, _ in points]
        fine = all(0 < number < math.inf for point in points for number in point)
        if not points or not fine or any(after <= before for before, after in itertools.pairwise(sizes)):
            raise RatesError(f"a curve needs positive (size, value) points of ascending size, got {self.points!r}")

    def at(self, size: float) -> float:
        """Return the value at a size."""
        points = self.points
        if len(points) == 1 or size <= points[0][0]:
            return points[0][1]
        if size >= points[-1][0] and not self.grows:
            return points[-1][1]
        last = next((at for at, (known, _) in enumerate(points) if known >= size), len(points) - 1)
        (low, first), (high, second) = points[last - 1], points[last]
        slope = math.log(second / first) / math.log(high / low)
        return first * (size / low) ** slope

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"points": [list(point) for point in self.points], "grows": self.grows}

    @classmethod
    def from_dict(cls, data: Any) -> Curve:
        """Return the curve that `to_dict` gave.

        Raises
        ------
        RatesError
            When it is none.
        """
        if not isinstance(data, Mapping) or "points" not in data:
            raise RatesError(f"a curve is an object with 'points', got {data!r}")
        return cls(tuple(map(tuple, data["points"])), bool(data.get("grows", False)))
