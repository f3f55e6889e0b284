"""A setting's measurements as plain data, ratios to dense round by round, and the tables made of them."""

from __future__ import annotations

import statistics
from typing import Any

from foveate.measure.bench.arms import AGAIN, DENSE
from foveate.measure.bench.measure import Measured, is_dense
from foveate.measure.bench.timing import CPU, PARTS, WALL
from foveate.measure.tables import Cells, markdown_table, percent


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
    found
        Dense first.
    asked
        Visual tokens that were asked for.
    batch
        Samples.
    clock
        The one whose ratios count: `cpu` or `wall`.
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


RULE = (
    "Slower: in three quarters of the rounds dense time / pruned time is under 1 by more than the spread, which is "
    "how far the quartiles of a second dense arm of the same rounds are from 1. Larger: a byte more at the peak of "
    "the prefill than dense"
)


def failures(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is slower or larger than dense, each with a `line` that says so.

    Parameters
    ----------
    result
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


WORDS = 2  # columns


def tables(result: dict[str, Any]) -> list[Cells]:
    """Return what was gained, and where the time to the first token goes."""
    return [table for table in (_gains(result), _split(result)) if table.rows]


def title(result: dict[str, Any]) -> str:
    """Return the model, its sizes and the machine, in a line."""
    model, machine = result["model"], result["machine"]
    sized = [f"{name} {made}" for name, made in model.get("resized", {}).items()]
    weights = ["random weights"] if model.get("random_weights") else []
    alone = [] if result["settings"]["vision"] else ["images encoded before"]
    device = machine.get("gpu") or f"CPU, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return ", ".join([model["name"], *weights, *sized, model["dtype"], model["attention"], *alone, device])


def _gains(result: dict[str, Any]) -> Cells:
    gpu = result["clock"] == "wall" and result["machine"]["device"] != "cpu"
    heads = [
        "TTFT, × faster",
        "FLOPs imply ×",
        "formula ×",
        "got / implied",
        "decode, × faster",
        "KV cache",
        "peak memory",
        "kept",
    ]
    if gpu:
        heads += ["TTFT, ms", "token, ms", "peak, MiB"]
    rows = []
    for entry in result["entries"]:
        dense = dense_entry(result, entry)
        if entry["failed"]:
            rows.append([_setting(entry), entry["arm"], entry["failed"], *[""] * (len(heads) - 1)])
            continue
        ratio = entry["realised_to_implied"]
        row = [
            _setting(entry),
            entry["arm"],
            _ratio(entry["prefill"]["faster"]),
            "–" if entry["implied"] is None else f"{entry['implied']:.2f}",
            _formula(entry),
            "–" if ratio is None else f"{ratio:.2f}",
            _ratio(entry["decode"]["faster"]),
            _share(entry["kv_bytes"], dense["kv_bytes"]),
            _share(entry["peak_bytes"], dense["peak_bytes"]),
            _kept(entry, dense),
        ]
        if gpu:
            for phase in ("prefill", "decode"):
                time = entry[phase]["wall_ms"]
                row.append("–" if time is None else f"{time['median']:.2f}")
            row.append("–" if entry["peak_bytes"] is None else f"{entry['peak_bytes'] / 2**20:.0f}")
        rows.append(row)
    return Cells(f"{title(result)}: beside dense, same rounds", ["visual × batch", "arm", *heads], rows)


def _split(result: dict[str, Any]) -> Cells:
    rows = []
    for entry in result["entries"]:
        if entry["parts"] is not None and entry["arm"] != AGAIN:
            shares = entry["parts"]["of_dense"]
            rows.append([_setting(entry), entry["arm"], *(f"{100 * shares[part]:.1f}" for part in (*PARTS, "total"))])
    heads = ["vision", "layers before", "layers after", "selection", "compaction", "rest", "all"]
    return Cells("Where the time to the first token goes, % of dense's", ["visual × batch", "arm", *heads], rows)


def _setting(entry: dict[str, Any]) -> str:
    return f"{entry['visual']} × {entry['batch']}"


def _ratio(spread: dict[str, float] | None) -> str:
    return "–" if spread is None else f"{spread['median']:.2f} [{spread['q25']:.2f}, {spread['q75']:.2f}]"


def _share(own: int | None, dense: int | None) -> str:
    return percent(own / dense) if own is not None and dense else "–"


def _formula(entry: dict[str, Any]) -> str:
    """What the report's closed formula, of the decoder layers alone, implies."""
    found = entry.get("flops_formula") or {}
    return f"{found['dense'] / found['pruned']:.2f}" if found.get("dense") and found.get("pruned") else "–"


def _kept(entry: dict[str, Any], dense: dict[str, Any]) -> str:
    if "last_layer_tokens" in entry:
        return percent(entry["last_layer_tokens"])
    return percent(entry["visual"] / dense["visual"])


def notes(result: dict[str, Any]) -> list[str]:
    """Return what a reader must know beside the tables."""
    rounds, clock = result["settings"]["rounds"], result["clock"]
    measured = "CPU time of the one process" if clock == "cpu" else "wall time"
    found = [
        f"× faster is dense time / the arm's time of the same round, {measured}: median of {rounds} rounds "
        "[quartiles]. FLOPs are torch's count of the whole prefill, selection included; got / implied is 1 where all "
        "of it is time.",
        f"Peak memory is that of the prefill: {result['memory']}.",
    ]
    again = [entry for entry in result["entries"] if entry["arm"] == AGAIN and entry["prefill"]["faster"]]
    if again:
        worst = max(noise(entry, "prefill") for entry in again)
        found.append(f"Spread of dense against dense in the same rounds: up to {100 * worst:.1f} % of a prefill.")
    found += result["notes"]
    for entry in result["entries"]:
        if entry.get("skipped"):
            found.append(f"NOT PRUNED: {entry['arm']}, {_setting(entry)}: {entry['skipped']}")
        found += [line for note in entry.get("notes", ()) if (line := f"{entry['arm']}: {note}") not in found]
        if entry["failed"] and entry["arm"] == DENSE:
            found.append(f"{_setting(entry)}: dense itself does not fit, so nothing was timed")
    return found


def markdown(result: dict[str, Any]) -> str:
    """Return a result as a Markdown page."""
    lines: list[str] = []
    for table in tables(result):
        lines += [f"## {table.title}", "", *markdown_table(table, WORDS), ""]
    lines += [f"* {note}" for note in notes(result)]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = result["machine"]
    lines += [f"* {machine['device']} ({machine.get('gpu', machine['cpu'])}); {versions}; {result['started']}.", ""]
    return "\n".join([*lines, "```", result["command"], "```", ""])
