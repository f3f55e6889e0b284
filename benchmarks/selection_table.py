"""Turn a result of selection.py into a Markdown page and a picture beside it (the picture needs matplotlib)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from selection import grows

Entry = dict[str, Any]
COLOURS = {"ours": "tab:blue", "plain form": "tab:green", "loop": "tab:orange", "k² rows": "tab:red"}
PAPER = {"ours": "`foveate.select`", "plain form": "its plain form", "loop": "plain loop", "k² rows": "k² rows"}


def ranged(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return "–"
    if ratio["least"] == ratio["most"]:
        return f"{ratio['median']:.2f}"
    return f"{ratio['median']:.2f} ({ratio['least']:.2f}–{ratio['most']:.2f})"


def lines_of(header: str, rows: list[list[str]]) -> list[str]:
    rule = "|" + "---|" * (header.count(" | ") + 1)
    return [f"| {header} |", rule, *(f"| {' | '.join(row)} |" for row in rows), ""]


def times(entries: list[Entry], others: list[str], on_gpu: bool) -> list[str]:
    rows = []
    for entry in entries:
        row = [entry["method"], entry["features"], str(entry["batch"]), f"{entry['visual']:,}", f"{entry['k']:,}"]
        if on_gpu:
            ours = entry["seconds"].get("ours")
            row.append(f"{1e3 * ours['median']:.3f}" if ours else "–")
        row += [ranged(entry["to_ours"].get(name)) for name in others]
        rows.append([*row, str(entry["rounds"])])
    milliseconds = ["`foveate.select`, ms"] if on_gpu else []
    ratios = [f"{PAPER[name]} / ours" for name in others]
    header = " | ".join(["method", "features", "batch", "N", "k", *milliseconds, *ratios, "rounds"])
    return lines_of(header, rows)


def memory(entries: list[Entry], names: list[str]) -> list[str]:
    found = [entry for entry in entries if entry["memory"] and entry["part"] == "table"]
    rows = []
    for entry in found:
        cells = [entry["memory"].get(name) for name in names]
        row = [entry["method"], f"{entry['visual']:,}", f"{entry['k']:,}"]
        rows.append(row + ["–" if cell is None else f"{cell:.2f}" for cell in cells])
    return lines_of(" | ".join(["method", "N", "k", *(PAPER[name] for name in names)]), rows)


def growing(cases: list[Entry]) -> list[Entry]:
    """Points of the growth plot, those that are in the table too."""
    return sorted((entry for entry in cases if grows(entry)), key=lambda entry: entry["visual"])


def page(result: Entry, source: str, picture: str | None) -> str:
    settings, machine, cases = result["settings"], result["machine"], result["cases"]
    on_gpu = "gpu" in machine
    names = ["ours", "plain form", "loop", "k² rows"] if on_gpu else ["ours", "loop", "k² rows"]
    where = machine.get("gpu") or f"{machine['cpu']}, {settings['threads']} thread(s) of {machine['cores']} cores"
    clock = "CUDA events" if on_gpu else "CPU time" if settings["threads"] == 1 else "wall-clock time"
    table, growth = [entry for entry in cases if entry["part"] == "table"], growing(cases)
    omitted = sorted({(entry["visual"], name) for entry in cases for name in entry["left_out"]})
    alike = [share for entry in cases for share in entry["chosen_alike"].values()]
    text = [
        "# Choosing: time and memory",
        "",
        f"Made by `selection_table.py` from `{source}`; do not edit.",
        "",
        f"`python benchmarks/{result['command']}`",
        "",
        f"Features of {settings['width']} dimensions in {settings['dtype']}, {clock}, on {where}; torch "
        f"{result['versions']['torch']}; {result['started']}.",
        "",
    ]
    if result["agreement"]:
        same = sum(one["same"] for one in result["agreement"])
        least = min(one["alike"] for one in result["agreement"])
        text += [
            f"Kernels and plain forms chose the same in {same} of {len(result['agreement'])} checks; in the worst "
            f"{least:.2%} of the picks were the same.",
            "",
        ]
    text += [
        "## Time",
        "",
        "Times of the others over ours: median over the rounds of ratios inside a round, in brackets the least and "
        "the most. *Plain loop*: a running minimum (for DPP a running residual), one product of all features with one "
        "vector a pick. *k² rows*: an N × N matrix, and at each pick the rows of all picked so far. The features are "
        "in clusters of eight (*clustered*) or have nothing to do with each other (*uniform*).",
        "",
        *times(table, names[1:], on_gpu),
        f"–: a call would take more than {settings['limit']:g} s by a rough estimate, and was left out "
        f"({', '.join(f'{PAPER[name]} at {visual:,}' for visual, name in omitted)}, some methods or larger k)."
        if omitted
        else "",
        "",
        f"The arms made at least {min(alike):.2%} of the picks alike (rounding decides between equally good ones)."
        if alike
        else "",
        "",
        f"## Peak memory, in multiples of the features\n\nKept 22 %; {result['memory']}.",
        "",
        *memory(cases, names),
    ]
    if growth:
        text += []
    if growth:
        text += [
            "## Growth",
            "",
            f"Max-min diversity at 22 % kept: time grows with N to the power of {result['growth_exponent']:.2f} "
            f"between N = {growth[0]['visual']:,} and {growth[-1]['visual']:,}; N k is 2.",
            "",
        ]
    if growth and picture:
        text += [f"![Time per pick and token, and peak memory, against N]({picture})", ""]
    return "\n".join(text)


def draw(result: Entry, picture: Path) -> bool:
    """Time for each token and pick, and memory, against N; without matplotlib nothing, and False."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    growth = growing(result["cases"])
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in COLOURS.items():
        points = [entry for entry in growth if name in entry["seconds"]]
        if not points:
            continue
        sizes = [entry["visual"] for entry in points]
        each = [1e9 * entry["seconds"][name]["median"] / (entry["visual"] * entry["k"]) for entry in points]
        left.plot(sizes, each, marker=".", color=colour, label=PAPER[name].strip("`"))
        held = [entry for entry in points if entry["memory"].get(name) is not None]
        more = [entry["memory"][name] for entry in held]
        right.plot([entry["visual"] for entry in held], more, marker=".", color=colour)
    left.set(xscale="log", yscale="log", xlabel="visual tokens N", ylabel="ns per token and pick")
    left.set_title("max-min diversity, 22 % kept: time", fontsize=10)
    left.legend(fontsize=8)
    right.set(xscale="log", yscale="log", xlabel="visual tokens N", ylabel="peak memory / features")
    right.set_title("memory beside the features", fontsize=10)
    figure.savefig(picture, dpi=110)
    return True


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: selection_table.py RESULT.json")
    source = Path(sys.argv[1])
    result = json.loads(source.read_text())
    picture = source.with_suffix(".png")
    drawn = result["growth_exponent"] is not None and draw(result, picture)
    target = source.with_suffix(".md")
    target.write_text(page(result, source.name, picture.name if drawn else None))
    print(target)


if __name__ == "__main__":
    main()
