"""How long a batch takes with an arm, beside the dense model on the same machine in the same minutes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from foveate.measure.bench.result import spread
from foveate.measure.bench.timing import CPU, WALL, Times, timed_run

WARM_UP = 1  # rounds that are not counted


@dataclass(frozen=True)
class Latency:
    """Time of one batch beside the dense model's, over alternating rounds.

    Parameters
    ----------
    prefill_ms, total_ms
        Median milliseconds of the prefill, and of prefill and decoding.
    prefill_faster, total_faster
        `median`, `q25` and `q75` of dense time over own time, round by round; over 1 is a gain.
    """

    prefill_ms: float
    total_ms: float
    prefill_faster: dict[str, float]
    total_faster: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def clock_of(model: Any) -> str:
    """Return which clock counts: `cpu` for one thread on a CPU, where others may use the machine too, else `wall`."""
    return CPU if model.device.type == "cpu" and torch.get_num_threads() == 1 else WALL


def measure_latency(
    model: Any, dense: Mapping[str, Any], inputs: Mapping[str, Any], pruner: Any, new_tokens: int, rounds: int
) -> Latency:
    """Time one batch dense and with an arm, in turn.

    Parameters
    ----------
    model
        Nothing may be attached to it.
    dense, inputs
        The processed batch of the dense model, and that of the arm: the same, or with smaller images.
    pruner
        Of the arm; `None` prunes nothing.
    new_tokens
        Tokens of an answer; the first comes of the prefill.
    rounds
        How often each is timed, after a warm-up.
    """
    old, new = alternate(model, dense, inputs, pruner, new_tokens, rounds)
    ratios = {
        part: spread([a / b for a, b in zip(old[part], new[part], strict=True) if b]) or {}
        for part in ("prefill", "total")
    }
    middle = {part: 1000 * statistics.median(new[part]) for part in ("prefill", "total")}
    return Latency(middle["prefill"], middle["total"], ratios["prefill"], ratios["total"])


def alternate(
    model: Any, dense: Mapping[str, Any], inputs: Mapping[str, Any], pruner: Any, new_tokens: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the seconds of each round by part, "prefill" and "total", dense and with an arm.

    The arguments are those of `measure_latency`.
    """
    before, after, steps = Times(), Times(), max(new_tokens - 1, 0)
    for turn in range(rounds + WARM_UP):
        arms = [(dense, None, before), (inputs, pruner, after)]
        for given, own, times in arms if turn % 2 else arms[::-1]:  # neither always finds the caches warm
            timed_run(model, given, own, steps, times)
    clock = clock_of(model)
    return _seconds(before, clock, steps), _seconds(after, clock, steps)


def _seconds(times: Times, clock: str, steps: int) -> dict[str, list[float]]:
    first = times.prefill[clock][WARM_UP:]
    token = times.decode[clock][WARM_UP:] if steps else [0.0] * len(first)
    return {"prefill": first, "total": [one + steps * other for one, other in zip(first, token, strict=True)]}
