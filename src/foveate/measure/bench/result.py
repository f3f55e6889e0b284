"""A setting's measurements as plain data: ratios to dense, round by round, and what the operations imply."""

from __future__ import annotations

import statistics
from typing import Any

from foveate.measure.bench.arms import DENSE
from foveate.measure.bench.measure import Measured, is_dense
from foveate.measure.bench.timing import CPU, PARTS, WALL


def spread(values: list[float]) -> dict[str, float] | None:
    """Return the median and the quartiles; None of nothing."""
    if not values:
        return None
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "q25": low, "q75": high}


def entries(found: list[Measured], asked: int | None, batch: int, clock: str) -> list[dict[str, Any]]:
    """Return one entry an arm.

    Parameters
    ----------
    found : list of Measured
        Dense first.
    asked : int or None
        Visual tokens that were asked for.
    batch : int
        Samples.
    clock : str
        The one whose ratios count: ``cpu`` or ``wall``.
    """
    return [_entry(one, found[0], asked, batch, clock) for one in found]


def _entry(one: Measured, dense: Measured, asked: int | None, batch: int, clock: str) -> dict[str, Any]:
    arm, report = one.arm, one.report
    entry: dict[str, Any] = {
        "visual_asked": asked,
        "visual": one.prompt.visual,
        "text": one.prompt.text,
        "pictures": one.prompt.pictures,
        "batch": batch,
        "arm": arm.label,
        "method": arm.method,
        "keep": arm.keep,
        "dense": is_dense(arm.label),
        "pruner": None if arm.pruner is None else repr(arm.pruner),
        "failed": one.failed,
    }
    for phase in ("prefill", "decode"):
        own, beside = getattr(one.times, phase), getattr(dense.times, phase)
        entry[phase] = {f"{kind}_ms": spread([1e3 * value for value in own[kind]]) for kind in (WALL, CPU)}
        for kind in (WALL, CPU):
            both = zip(beside[kind], own[kind], strict=True) if beside[kind] and own[kind] else ()
            ratios = [a / b for a, b in both if b]
            entry[phase][f"faster_{kind}"] = spread(ratios)
        entry[phase]["faster"] = entry[phase][f"faster_{clock}"]
    entry["parts"] = _parts(one, dense)
    entry["selection_ms"] = spread(one.selection_ms)
    entry["flops"], entry["peak_bytes"], entry["kv_bytes"] = one.flops, one.peak, one.kv
    entry["implied"] = dense.flops / one.flops if dense.flops and one.flops else None
    realised = entry["prefill"]["faster"]
    entry["realised_to_implied"] = realised["median"] / entry["implied"] if realised and entry["implied"] else None
    if report is not None and report.prefills:
        entry |= {
            "stages": [
                {"layer": stage.layer, "kept": sum(map(len, stage.kept)) / len(stage.kept)} for stage in report.stages
            ],
            "mean_tokens_per_layer": report.mean_tokens_per_layer,
            "last_layer_tokens": report.last_layer_tokens,
            "kv_share": report.kv_share,
            "flops_formula": {"dense": report.flops_dense, "pruned": report.flops_pruned},
            "skipped": report.skipped,
            "notes": report.notes,
        }
    return entry


def _parts(one: Measured, dense: Measured) -> dict[str, Any] | None:
    """Medians of the parts, in milliseconds and as shares of dense's whole prefill taken apart."""
    if not one.parts or not dense.parts:
        return None
    whole = statistics.median(parts["total"] for parts in dense.parts)
    found = {name: statistics.median(parts[name] for parts in one.parts) for name in (*PARTS, "total")}
    return {"ms": found, "of_dense": {name: value / whole for name, value in found.items()}}


def dense_entry(result: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return the dense entry beside another one of a result."""
    setting = ("visual_asked", "batch")
    return next(
        one for one in result["entries"] if one["arm"] == DENSE and all(one[name] == entry[name] for name in setting)
    )
