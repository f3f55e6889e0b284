"""The tables of a bench result: the same cells for a terminal and for Markdown."""

from __future__ import annotations

from typing import Any

from foveate.measure.bench.arms import AGAIN, DENSE
from foveate.measure.bench.result import dense_entry, noise
from foveate.measure.bench.timing import PARTS
from foveate.measure.tables import Cells, markdown_row, percent

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
        lines += [f"## {table.title}", "", markdown_row(table.columns)]
        lines += [
            markdown_row([":---"] * WORDS + ["---:"] * (len(table.columns) - WORDS)),
            *map(markdown_row, table.rows),
            "",
        ]
    lines += [f"* {note}" for note in notes(result)]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = result["machine"]
    lines += [f"* {machine['device']} ({machine.get('gpu', machine['cpu'])}); {versions}; {result['started']}.", ""]
    return "\n".join([*lines, "```", result["command"], "```", ""])
