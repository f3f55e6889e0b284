"""Turn a result of btp_selection.py into a Markdown page beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from btp_selection_parts import OURS

Ratio = dict[str, float]


def percent(ratio: Ratio | None) -> str:
    return f"{ratio['median']:.3%}" if ratio else ""


def ranged(ratio: Ratio, form: str = ".1%") -> str:
    return f"{ratio['median']:{form}} ({ratio['least']:{form}}–{ratio['most']:{form}})"


def milliseconds(seconds: Ratio | None) -> str:
    return f"{1e3 * seconds['median']:.2f}" if seconds else ""


def layout(entry: dict[str, Any]) -> str:
    height, width = entry["grids"][0]
    many = len(entry["grids"])
    return f"{entry['visual']:,} ({f'{many} × ' if many > 1 else ''}{height}×{width})"


def lines_of(header: str, rows: list[list[str]]) -> list[str]:
    rule = "|" + "---|" * header.count(" | ") + "---|"
    return [f"| {header} |", rule, *(f"| {' | '.join(row)} |" for row in rows), ""]


def parts(result: dict[str, Any], on_gpu: bool) -> list[str]:
    """Each part at each stage: shares of the dense prefill, milliseconds on a GPU."""
    rows = []
    for entry in result["choosing"]:
        for name, found in entry["schedules"].items():
            for stage in found["stages"]:
                times = stage["parts_s"] if on_gpu else stage["parts_to_dense"]
                cells = [(milliseconds if on_gpu else percent)(times.get(part)) for part in OURS]
                total = "" if on_gpu else percent(stage["to_dense"])
                cut = f"{stage['tokens']:,} → {stage['keep']:,}"
                loop = f"{stage['loop_to_ours']['median']:.1f}"
                rows.append([layout(entry), name, str(stage["layer"]), cut, *cells, total, loop])
    header = f"visual tokens | stages | before layer | tokens | {' | '.join(OURS)} | sum | loop / ours"
    unit = "Milliseconds." if on_gpu else "Shares of the dense prefill's time, medians."
    return [
        f"## Choosing, part by part\n\n{unit} The spatial seed is what the first prompt of a shape pays; later ones "
        "look it up. *Loop* puts a plain loop, one argmin and one product a pick, in the place of seed and diversity.",
        "",
        *lines_of(header, rows),
    ]


def sums(result: dict[str, Any]) -> list[str]:
    """Choosing and the pruned prefill against the dense one."""
    rows = []
    for entry in result["choosing"]:
        for name, found in entry["schedules"].items():
            shares = [ranged(found[which], ".2%") for which in ("choosing_to_dense", "loop_to_dense")]
            multiple = ranged(found["loop_to_ours"], ".2f")
            prefill = [ranged(found[f"{which}_to_dense"]) for which in ("layers", "pruned", "looped")]
            rows.append([layout(entry), name, f"{found['mean_tokens']:.1%}", *shares, multiple, *prefill])
    header = (
        "visual tokens | stages | tokens a layer, mean | choosing / dense | loop / dense | loop / ours "
        "| pruned layers / dense | **with choosing** | with the loop"
    )
    counts = ", ".join(f"{entry['rounds']} at {entry['visual']:,}" for entry in result["choosing"])
    return [
        f"## A prefill of {result['settings']['depth']} layers\n\nOne decoder layer timed at each number of tokens "
        f"and counted as often as it occurs. Medians over the rounds ({counts}), in brackets the least and the most.",
        "",
        *lines_of(header, rows),
    ]


def attached(result: dict[str, Any], on_gpu: bool) -> list[str]:
    """The model with BTP attached."""
    found = result["attached"]
    if not found:
        return []
    rows = []
    for entry in found:
        cuts = ", ".join(f"{kept:,} from layer {layer}" for layer, kept in entry["stages"])
        row = [f"{entry['visual']:,} ({entry['images']} image(s))", cuts, f"{entry['implied']:.1%}"]
        row += [ranged(entry["pruned_to_dense"]), ranged(entry["selection_to_dense"], ".2%")]
        if on_gpu:
            row += [milliseconds(entry[f"{which}_s"]) for which in ("dense", "pruned", "selection")]
        rows.append(row)
    header = "visual tokens | kept | FLOPs, pruned / dense | **pruned / dense** | `select` / dense"
    header += " | dense, ms | pruned, ms | `select`, ms" if on_gpu else ""
    rounds = result["settings"]["attached_rounds"]
    whole = "" if found[0]["layers"] == result["settings"]["depth"] else " of that shape"
    return [
        f"## BTP attached\n\nA LLaVA of {found[0]['layers']} decoder layers{whole} with `BTP.for_model`, hooks and "
        f"all, turn about with the dense model, {rounds} rounds; prefill of the language model, images encoded "
        "before. `select` is what the report states: all but the attention row, by the clock.",
        "",
        *lines_of(header, rows),
    ]


def page(result: dict[str, Any], source: str) -> str:
    settings, machine = result["settings"], result["machine"]
    on_gpu = "gpu" in machine
    where = machine.get("gpu") or f"{machine['cpu']}, {settings['threads']} thread(s) of {machine['cores']} cores"
    kind = "CUDA events" if on_gpu else "CPU time" if settings["threads"] == 1 else "wall-clock time"
    dtype, speed = settings["dtype"], result["dtype_s"]
    if speed:
        fast, slow = sorted(speed, key=speed.__getitem__)
        dtype += f" (a layer takes {speed[slow] / speed[fast]:.1f} times as long in {slow})"
    return "\n".join(
        [
            "# BTP: time to choose",
            "",
            f"Made by `btp_selection_table.py` from `{source}`; do not edit.",
            "",
            f"`python benchmarks/{result['command']}`",
            "",
            f"Random weights, Llama layers of hidden size {settings['hidden']}, {dtype}, batch 1, {settings['text']} "
            f"text tokens, {kind}, on {where}; torch {result['versions']['torch']}, transformers "
            f"{result['versions']['transformers']}; {result['started']}.",
            "",
            *parts(result, on_gpu),
            *([] if on_gpu else sums(result)),
            *attached(result, on_gpu),
        ]
    )


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: btp_selection_table.py RESULT.json")
    source = Path(sys.argv[1])
    target = source.with_suffix(".md")
    target.write_text(page(json.loads(source.read_text()), source.name))
    print(target)


if __name__ == "__main__":
    main()
