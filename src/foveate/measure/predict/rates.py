"""What a machine does in a second: the measured rates that a prediction is made of."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foveate.errors import FoveateError
from foveate.measure import environment


class RatesError(FoveateError, ValueError):
    """Rates, or a file of them, are not what they should be; the message says what is wrong."""


@dataclass(frozen=True)
class RateCurve:
    """Measured points with straight lines between them, both axes logarithmic.

    Parameters
    ----------
    points
        (size, value), both positive, by ascending size.
    grows
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
    def from_dict(cls, data: Any) -> RateCurve:
        """Return the curve that `to_dict` gave.

        Raises
        ------
        RatesError
            When it is none.
        """
        if not isinstance(data, Mapping) or "points" not in data:
            raise RatesError(f"a curve is an object with 'points', got {data!r}")
        return cls(tuple(map(tuple, data["points"])), bool(data.get("grows", False)))


CURVES = ("linear", "attention", "pointwise", "bandwidth")


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of one decoder layer.

    Parameters
    ----------
    hidden, width
        Of the hidden states and of the gated MLP.
    heads, groups, size
        Query heads, key-value heads, and the width of one.
    """

    hidden: int = 2048
    width: int = 5632
    heads: int = 16
    groups: int = 16
    size: int = 128

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.size

    @property
    def key(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.groups * self.size

    @property
    def pointwise(self) -> int:
        """Numbers that norms, sums, activation and rotation write for one token: what `Rates.pointwise` counts."""
        return 4 * self.hidden + self.width + self.query + self.key

    @classmethod
    def of(cls, config: Any) -> LayerSizes:
        """Return the sizes in a text config."""
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        return cls(config.hidden_size, config.intermediate_size, heads, groups, size)


@dataclass(frozen=True)
class Rates:
    """The rates of one device and one type.

    Parameters
    ----------
    device, dtype
        What was measured, such as `cpu` and `float32`.
    linear
        Tokens in a product -> FLOP/s of a decoder layer's matrix products.
    attention
        Tokens of a sample -> FLOP/s of causal attention, counted as a full map.
    pointwise
        Tokens -> numbers a second (`LayerSizes.pointwise`) of the rest of a layer: norms, activation, rotation, sums.
    bandwidth
        Bytes of a tensor -> bytes a second, read and written, of gathering its rows.
    overhead
        Seconds of an operation that has nothing to do: Python, modules and dispatch, or the launch of a kernel.
    shape
        The decoder layer that was measured.
    choosing
        Visual tokens -> seconds that a method takes to select, see `foveate.measure.predict.selection`.
    machine, versions
        Where and with what it was measured.

    Raises
    ------
    RatesError
        When a rate is no positive number.
    """

    device: str
    dtype: str
    linear: RateCurve
    attention: RateCurve
    pointwise: RateCurve
    bandwidth: RateCurve
    overhead: float
    shape: LayerSizes = field(default_factory=LayerSizes)
    choosing: dict[str, RateCurve] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.overhead, bool) or not isinstance(self.overhead, (int, float)) or not self.overhead > 0:
            raise RatesError(f"overhead must be seconds above 0, got {self.overhead!r}")
        for name in CURVES:
            if not isinstance(getattr(self, name), RateCurve):
                raise RatesError(f"{name} must be a RateCurve, got {getattr(self, name)!r}")
        self.torch_dtype  # noqa: B018  says what is wrong with it

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type, as torch has it."""
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise RatesError(f"no floating type {self.dtype!r}")
        return dtype

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self.torch_dtype.itemsize

    @property
    def here(self) -> bool:
        """Whether this process runs on the machine, the device and the number of threads that were measured."""
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError):
            return False
        return self.machine == environment.machine(torch.device(self.device))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        curves = {name: plain[name].to_dict() for name in CURVES}
        choosing = {name: curve.to_dict() for name, curve in self.choosing.items()}
        return {**plain, **curves, "shape": dataclasses.asdict(self.shape), "choosing": choosing}

    @classmethod
    def from_dict(cls, data: Any) -> Rates:
        """Return the rates that `to_dict` gave.

        Raises
        ------
        RatesError
            When something is missing, unknown or no rate.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        if not isinstance(data, dict) or set(data) - known or {*CURVES, "device", "dtype", "overhead"} - set(data):
            raise RatesError(f"rates are an object with {', '.join(sorted(known))}")
        made = {**data, **{name: RateCurve.from_dict(data[name]) for name in CURVES}}
        try:
            made["shape"] = LayerSizes(**data.get("shape", {}))
            made["choosing"] = {name: RateCurve.from_dict(one) for name, one in data.get("choosing", {}).items()}
        except (TypeError, AttributeError) as error:
            raise RatesError(f"these rates are not complete: {error}") from None
        return cls(**made)

    def save(self, path: str | Path) -> None:
        """Write the rates as JSON."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Rates:
        """Read what `save` wrote.

        Raises
        ------
        RatesError
            When there is no such file, or it holds no rates.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, RatesError):
                raise RatesError(f"{path}: {error}") from None
            raise RatesError(f"{path} holds no rates: {error}") from None
