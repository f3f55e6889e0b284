"""The clock of `measure_rates`: each part of a decoder layer by itself, at a few sizes."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.measure import environment
from foveate.measure.bench.timing import synchronize
from foveate.measure.predict.rates import LayerSizes, RateCurve, Rates
from foveate.torch_state import own_randomness

TOKENS = (1, 8, 64, 256, 1024, 4096)
BYTES = (2**16, 2**20, 2**24, 2**27)
COLD = 2**28  # bytes of weights that are gone through in turn: a model's do not stay in a cache between its layers
SMALL = 16  # width of a layer that takes no time
LEAST = 3  # runs of each at least
PASSES = 2
ENOUGH = 2e10  # operations of a run on a CPU


def measure_rates(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, config: Any = None, seconds: float = 5.0
) -> Rates:
    """Measure the rates of a device and a type, for the decoder layers of a text config.

    Parameters
    ----------
    device
        Where.
    dtype
        Of weights and hidden states.
    config
        A text config, whose shapes are measured; None: `LayerSizes()`.
    seconds
        About how long it may take; sizes that do not fit in are left out, and the largest that was measured stands
        for those above it.
    """
    device = torch.device(device)
    shape = LayerSizes() if config is None else LayerSizes.of(config)
    return Rates(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        shape=shape,
        machine=environment.machine(device),
        versions=environment.versions(),
        **curves(device, dtype, shape, seconds),
    )


def curves(device: torch.device, dtype: torch.dtype, shape: LayerSizes, seconds: float) -> dict[str, Any]:
    """Return the measured fields of `Rates`."""
    with own_randomness(), torch.inference_mode():
        return {
            "linear": _curve(TOKENS, _linear(device, dtype, shape), device, seconds * 0.5),
            "attention": _curve((16, *TOKENS[2:]), _attention(device, dtype, shape), device, seconds * 0.2),
            "pointwise": _curve(TOKENS, _pointwise(device, dtype, shape), device, seconds * 0.2),
            "bandwidth": _curve(BYTES, _gather(device, dtype, shape), device, seconds * 0.1),
            "overhead": _overhead(device),
        }


def clock(run: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Return the seconds of one run: the lower quartile of several, after one to warm up.

    Parameters
    ----------
    run
        What is timed.
    device
        What it runs on; other than a CPU it is given many runs before it is waited for.
    seconds
        About how long to go on.
    """
    now = _now(device)
    synchronize(device)
    begin = now()
    run()
    synchronize(device)
    first = now() - begin
    if first > seconds or device.type != "cpu":  # something may have been made ready: a kernel, a table
        begin = now()
        run()
        synchronize(device)
        first = min(first, now() - begin)
        if first > seconds:
            return first
    together = 1 if device.type == "cpu" else max(1, min(20, int(seconds / LEAST / max(first, 1e-6))))
    found: list[float] = []
    while len(found) < LEAST or now() - begin < seconds:
        if found and now() - begin > 2 * seconds:
            break
        start = now()
        for _ in range(together):
            run()
        synchronize(device)
        found.append((now() - start) / together)
    found.sort()
    return found[len(found) // 4]


def _curve(
    sizes: Iterable[int], at: Callable[[int], tuple[Callable[[], Any], float]], device: torch.device, seconds: float
) -> RateCurve:
    """Rates of `at(size) -> (run, what a run does)`, as far as the seconds go: the best of two passes."""
    sizes = tuple(sizes)
    best: dict[int, float] = {}
    now = _now(device)
    for _ in range(PASSES):  # something that disturbs one of them is gone, as a rule, in the other
        end = now() + seconds / PASSES
        for number, size in enumerate(sizes):
            run, work = at(size)
            left = end - now()
            if best and work / max(best.values()) > 1.5 * left:  # larger sizes are faster, as a rule
                break
            taken = clock(run, device, left / (len(sizes) - number) / 2)
            best[size] = max(best.get(size, 0.0), work / taken)
    return RateCurve(tuple(sorted(best.items())))


def _linear(device: torch.device, dtype: torch.dtype, shape: LayerSizes) -> Callable:
    sides = [
        (shape.hidden, shape.query),
        (shape.hidden, shape.width),
        (shape.width, shape.hidden),
        (shape.query, shape.hidden),
        (shape.hidden, shape.key),
    ]
    each = [inputs * outputs for inputs, outputs in sides]
    copies = max(1, min(64, math.ceil(COLD / (sum(each) * dtype.itemsize))))
    weights = [
        [torch.empty(outputs, inputs, device=device, dtype=dtype).uniform_(-0.01, 0.01) for inputs, outputs in sides]
        for _ in range(copies)
    ]

    def at(tokens: int) -> tuple[Callable[[], Any], float]:
        rows = {width: torch.ones(tokens, width, device=device, dtype=dtype) for width, _ in sides}
        fit = sum(2.0 * tokens * total <= ENOUGH for total in itertools.accumulate(each))
        used = max(1, fit) if device.type == "cpu" else len(sides)  # of a large layer a part will do
        turn = iter(range(10**9))

        def run() -> None:
            for weight in weights[next(turn) % copies][:used]:
                functional.linear(rows[weight.shape[1]], weight)

        return run, 2.0 * tokens * sum(each[:used])

    return at


def _attention(device: torch.device, dtype: torch.dtype, shape: LayerSizes) -> Callable:
    def at(tokens: int) -> tuple[Callable[[], Any], float]:
        # as a model has them: heads are a view of the projections
        query, key, value = (
            torch.randn(1, tokens, shape.heads, shape.size, device=device, dtype=dtype).transpose(1, 2)
            for _ in range(3)
        )

        def run() -> Tensor:
            found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            return found.transpose(1, 2).contiguous()

        return run, 4.0 * tokens * tokens * shape.query

    return at


def _pointwise(device: torch.device, dtype: torch.dtype, shape: LayerSizes) -> Callable:
    def at(tokens: int) -> tuple[Callable[[], Any], float]:
        hidden = torch.randn(1, tokens, shape.hidden, device=device, dtype=dtype)
        gate = torch.randn(1, tokens, shape.width, device=device, dtype=dtype)
        heads = [
            torch.randn(1, tokens, number, shape.size, device=device, dtype=dtype).transpose(1, 2)
            for number in (shape.heads, shape.groups)
        ]
        angle = torch.randn(1, 1, tokens, shape.size, device=device, dtype=dtype)
        scale = torch.ones(shape.hidden, device=device, dtype=dtype)

        def run() -> None:
            for _ in range(2):
                wide = hidden.float()
                wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
                _ = hidden + scale * wide.to(dtype)
            _ = functional.silu(gate) * gate
            for head in heads:
                first, second = head.chunk(2, -1)
                _ = head * angle + torch.cat([-second, first], -1) * angle

        return run, float(tokens * shape.pointwise)

    return at


def _gather(device: torch.device, dtype: torch.dtype, shape: LayerSizes) -> Callable:
    def at(size: int) -> tuple[Callable[[], Any], float]:
        rows = max(1, size // (shape.hidden * dtype.itemsize))
        source = torch.zeros(1, rows, shape.hidden, device=device, dtype=dtype)
        index = torch.arange(rows, device=device)[None, :, None].expand(-1, -1, shape.hidden)
        return lambda: source.gather(1, index), 2.0 * rows * shape.hidden * dtype.itemsize

    return at


def _overhead(device: torch.device) -> float:
    layer, hidden = _SmallLayer().to(device), torch.ones(1, 1, SMALL, device=device)
    return clock(lambda: layer(hidden), device, 0.1) / _SmallLayer.operations


class _SmallLayer(nn.Module):
    """The operations of a decoder layer, through modules as in a model, too small for anything but their number."""

    operations = 42

    def __init__(self) -> None:
        super().__init__()
        self.products = nn.ModuleList(nn.Linear(SMALL, SMALL, bias=False) for _ in range(7))
        self.norms = nn.ModuleList(_Norm() for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value, out, gate, up, down = self.products
        normed = self.norms[0](hidden)
        heads = [one(normed).view(1, 1, 2, -1).transpose(1, 2) for one in (query, key, value)]
        for number in range(2):
            first, second = heads[number].chunk(2, -1)
            heads[number] = heads[number] * 0.5 + torch.cat([-second, first], -1) * 0.5
        keys, values = (torch.cat([held, held], -2) for held in heads[1:])
        found = functional.scaled_dot_product_attention(heads[0], keys, values)
        hidden = hidden + out(found.transpose(1, 2).reshape(1, 1, SMALL))
        normed = self.norms[1](hidden)
        return hidden + down(functional.silu(gate(normed)) * up(normed))


class _Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(SMALL))

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.to(torch.float64)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(hidden.dtype)


def _now(device: torch.device) -> Callable[[], float]:
    """A clock; with one thread CPU time is what it took, whatever else the machine was doing."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
