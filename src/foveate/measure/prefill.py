"""Prefill time of a pruned run as a ratio to the dense run beside it."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

RUNS, WARM_UP = 9, 2


@dataclass(frozen=True)
class PrefillTime:
    """Medians over alternating runs.

    Parameters
    ----------
    ratio : float
        Median over the runs of pruned time over the time of the dense run beside it; under 1 is a gain.
    dense_ms, pruned_ms : float
        Median milliseconds, image encoder included. They belong to the machine and its load; the ratio travels.
    selection_ms : float
        Median milliseconds of ``pruned_ms`` that went into choosing.
    runs : int
        Pairs that were timed.
    """

    ratio: float
    dense_ms: float
    pruned_ms: float
    selection_ms: float
    runs: int

    def to_dict(self) -> dict[str, float]:
        """Return plain data for JSON."""
        return asdict(self)


@torch.inference_mode()
def time_prefill(model: Any, inputs: Mapping[str, Any], pruner: Any, runs: int = RUNS) -> PrefillTime:
    """Time the prefill of one batch dense and pruned, turn about, in this process.

    Parameters
    ----------
    model : PreTrainedModel
        Nothing may be attached to it.
    inputs : mapping
        A processed batch.
    pruner : Pruner
        What is compared with the dense run.
    runs : int
        Pairs to time, after a warm-up.
    """
    dense: list[float] = []
    pruned: list[float] = []
    selection: list[float] = []
    for turn in range(runs + WARM_UP):
        if turn % 2:  # neither is always the one that finds the caches warm
            dense.append(_forward(model, inputs))
        with pruner(model) as handle:
            pruned.append(_forward(model, inputs))
        selection.append(handle.report.selection_ms)
        if not turn % 2:
            dense.append(_forward(model, inputs))
    ratios = [after / before for before, after in zip(dense[WARM_UP:], pruned[WARM_UP:], strict=True)]
    times = (1000 * statistics.median(dense[WARM_UP:]), 1000 * statistics.median(pruned[WARM_UP:]))
    return PrefillTime(statistics.median(ratios), *times, statistics.median(selection[WARM_UP:]), runs)


def _forward(model: Any, inputs: Mapping[str, Any]) -> float:
    _wait(model.device)
    start = time.perf_counter()
    model(**inputs, use_cache=True, logits_to_keep=1)
    _wait(model.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
