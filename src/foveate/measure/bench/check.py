"""Is anything slower than dense, or larger? The rule of `foveate bench --check`."""

from __future__ import annotations

from typing import Any

from foveate.measure.bench.arms import AGAIN

RULE = (
    "Slower: in three quarters of the rounds dense time / pruned time is under 1 by more than the spread, which is "
    "how far the quartiles of a second dense arm of the same rounds are from 1. Larger: a byte more at the peak of "
    "the prefill than dense"
)


def failures(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is slower or larger than dense, each with a `line` that says so.

    Parameters
    ----------
    result : dict
        Of `run.run`; dense, dense again and the smaller picture are not judged.
    """
    found: list[dict[str, Any]] = []
    settings: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for entry in result["entries"]:
        settings.setdefault((entry["visual_asked"], entry["batch"]), []).append(entry)
    for together in settings.values():
        dense, again = together[0], next((one for one in together if one["arm"] == AGAIN), None)
        if dense["failed"]:
            found.append(_failure(dense, "dense", f"{dense['failed']}: nothing could be compared"))
        for entry in together:
            if not entry["dense"]:
                found += [*_slower(entry, again), *_larger(entry, dense)]
    return found


def noise(again: dict[str, Any] | None, phase: str) -> float:
    """Return how far from 1 the ratio of dense to dense runs, as a share."""
    ratios = None if again is None else again[phase]["faster"]
    return max(1 - ratios["q25"], ratios["q75"] - 1, 0.0) if ratios else 0.0


def _slower(entry: dict[str, Any], again: dict[str, Any] | None) -> list[dict[str, Any]]:
    found = []
    for phase in ("prefill", "decode"):
        ratios, spread = entry[phase]["faster"], noise(again, phase)
        if ratios is not None and ratios["q75"] < 1 - spread:
            slower = f"takes {1 / ratios['median']:.3g} times dense's time (spread of dense {100 * spread:.1f} %)"
            found.append(_failure(entry, phase, f"{phase} is slower than dense: {slower}"))
    return found


def _larger(entry: dict[str, Any], dense: dict[str, Any]) -> list[dict[str, Any]]:
    if entry["failed"] and not dense["failed"]:
        return [_failure(entry, "memory", f"{entry['failed']}, where dense fits")]
    own, beside = entry["peak_bytes"], dense["peak_bytes"]
    if own is None or beside is None or own <= beside:
        return []
    return [_failure(entry, "memory", f"peak memory is above dense: {own:,} bytes, dense {beside:,}")]


def _failure(entry: dict[str, Any], what: str, said: str) -> dict[str, Any]:
    setting = f"{entry['visual']} visual tokens, batch {entry['batch']}, {entry['arm']}"
    return {
        "what": what,
        "arm": entry["arm"],
        "visual": entry["visual"],
        "batch": entry["batch"],
        "line": f"{setting}: {said}",
    }
