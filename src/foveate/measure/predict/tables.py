"""The tables of `foveate bench --predict`."""

from __future__ import annotations

from typing import Any

from foveate.measure.tables import Cells, percent

WORDS = 2  # columns of words
PARTS = ("before", "behind", "choosing", "compaction", "rest")


def predicted_tables(result: dict[str, Any]) -> list[Cells]:
    """Return what is predicted to be gained, and where the time goes."""
    model, rates = result["model"], result["rates"]
    machine = rates["machine"]
    device = machine.get("gpu") or f"{machine.get('cpu', rates['device'])}, {machine.get('threads', '?')} thread(s)"
    title = f"{model['name']}, {rates['dtype']}, {device}: PREDICTED beside dense, images encoded before"
    heads = ["prefill, × faster", "FLOPs imply ×", "KV cache", "peak memory", "break-even"]
    gains, split = [], []
    for entry in result["entries"]:
        name = [f"{entry['visual']} × {entry['batch']}", entry["arm"]]
        share = entry["kv_pruned"] / entry["kv_dense"]
        ratios = [f"{entry[key]:.2f}" for key in ("speedup", "implied")]
        length = "none" if entry["break_even"] is None else str(entry["break_even"])
        gains.append([*name, *ratios, percent(share), percent(entry["memory_share"]), length])
        whole = sum(entry["dense"].values())
        shares = [f"{100 * entry['pruned'][part] / whole:.1f}" for part in PARTS]
        split.append([*name, *shares, f"{100 / entry['speedup']:.1f}"])
    return [
        Cells(title, ["visual × batch", "arm", *heads], gains),
        Cells(
            "Where the time of a prefill would go, % of dense's",
            ["visual × batch", "arm", "layers before", "layers after", "selection", "compaction", "rest", "all"],
            split,
        ),
    ]


def predicted_notes(result: dict[str, Any]) -> list[str]:
    """Return what a reader must know beside the tables."""
    return [
        "Nothing was run but parts of a decoder layer and the methods' own choice on made-up tokens: predictions from "
        "the config and this machine's rates. How far they are off: benchmarks/results/predicted.md.",
        f"Break-even: from so many visual tokens of a prompt on the prefill is predicted to be at least "
        f"{100 * result['margin']:.0f} % faster than dense; set min_visual to it, and shorter prompts run dense.",
    ]


def beside_table(rows: list[dict[str, Any]]) -> Cells:
    """Return predicted beside measured ratios to dense."""

    def share(shares: dict[str, Any]) -> list[str]:
        return [percent(shares["predicted"]), percent(shares["measured"])]

    def cells(ratios: dict[str, Any]) -> list[str]:
        if ratios["measured"] is None:
            return [f"{ratios['predicted']:.2f}", "–", "–"]
        error = ratios["predicted"] / ratios["measured"] - 1
        return [f"{ratios['predicted']:.2f}", f"{ratios['measured']:.2f}", f"{100 * error:+.1f}"]

    found = []
    for row in rows:
        name = [f"{row['visual']} × {row['batch']}", row["arm"]]
        found.append([*name, *cells(row["prefill"]), *share(row["kv"]), *share(row["memory"])])
    heads = ["TTFT, × predicted", "measured", "error, %"]
    heads += ["KV cache, predicted", "measured", "peak memory, predicted", "measured"]
    return Cells("Predicted beside measured, against dense", ["visual × batch", "arm", *heads], found)
