"""Table and picture of `realised.py growth`: cost over the number of visual tokens, beside dense at the smallest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from foveate.measure.bench.result import notes as bench_notes
from foveate.measure.bench.result import title

LEFT_OUT = ("dense again", "smaller picture")
WHAT = {
    "prefill": "prefill, dense at the smallest size = 1",
    "choosing": "choosing, dense prefill at the smallest size = 1",
    "memory": "peak memory of the prefill, MiB",
}


def curves(result: dict[str, Any]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """For each of WHAT, for each arm, (visual tokens, value)."""
    unit = result["entries"][0]["prefill"][f"{result['clock']}_ms"]["median"]
    wall = result["entries"][0]["prefill"]["wall_ms"]["median"]
    found: dict[str, dict[str, list[tuple[int, float]]]] = {what: {} for what in WHAT}
    for entry in result["entries"]:
        if entry["failed"] or entry["arm"].startswith(LEFT_OUT):
            continue
        values = {
            "prefill": entry["prefill"][f"{result['clock']}_ms"]["median"] / unit,
            "choosing": entry["selection_ms"]["median"] / wall if entry["selection_ms"] else None,
            "memory": entry["peak_bytes"] / 2**20 if entry["peak_bytes"] else None,
        }
        for what, value in values.items():
            if value is not None:
                found[what].setdefault(entry["arm"], []).append((entry["visual"], value))
    return found


def slope(points: list[tuple[int, float]]) -> float | None:
    """Exponent between the last two sizes."""
    if len(points) < 2:
        return None
    (n, a), (m, b) = points[-2:]
    return math.log(b / a) / math.log(m / n) if a > 0 and b > 0 else None


def growth_markdown(result: dict[str, Any]) -> str:
    """One table each."""
    sizes = sorted({entry["visual"] for entry in result["entries"] if not entry["arm"].startswith(LEFT_OUT)})
    lines = [f"# Growth over the visual tokens: {title(result)}", ""]
    for what, arms in curves(result).items():
        lines += [f"## {WHAT[what]}", "", f"| arm | {' | '.join(map(str, sizes))} | exponent at the end |"]
        lines.append(f"|:---|{'---:|' * (len(sizes) + 1)}")
        for arm, points in arms.items():
            values, steep = dict(points), slope(points)
            cells = [f"{values[size]:.3g}" if size in values else "–" for size in sizes]
            lines.append(f"| {arm} | {' | '.join(cells)} | {'–' if steep is None else f'{steep:.2f}'} |")
        lines.append("")
    larger = [failure["line"] for failure in result["check"]["failures"]]
    rounds = {entry["visual"]: entry["rounds"] for entry in result["entries"] if entry["dense"]}
    lines.append(f"* Rounds: {', '.join(f'{rounds[size]} at {size}' for size in sizes)}.")
    lines += [f"* {line}" for line in [*bench_notes(result)[1:], *larger]]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join(
        [*lines, f"* {result['machine']}; {versions}; {result['started']}.", "", f"    {result['command']}", ""]
    )


def draw_growth(result: dict[str, Any], picture: Path) -> None:
    """Three log-log panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    found = curves(result)
    arms = list(found["prefill"])
    for axes, what in zip(figure.subplots(1, 3), WHAT, strict=True):
        for arm, points in found[what].items():
            steep = slope(points)
            label = arm if steep is None else f"{arm}: N^{steep:.2f}"
            colour = f"C{arms.index(arm)}"
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label, color=colour)
        axes.set(xscale="log", yscale="log", xlabel="visual tokens", title=WHAT[what])
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        if found[what]:
            axes.legend(fontsize=7)
    figure.suptitle(title(result), fontsize=9)
    figure.savefig(picture, dpi=110)
