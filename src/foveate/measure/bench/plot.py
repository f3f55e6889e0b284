"""Realised against FLOPs-implied speed-up as a figure."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from typing import Any

from foveate.measure.bench.result import title
from foveate.measure.loading import LoadError

MARKS = "osD^vP*X<>"


def need_matplotlib() -> None:
    """Raise unless figures can be drawn.

    Raises
    ------
    LoadError
        With the command that installs what is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise LoadError("--plot needs matplotlib: pip install 'foveate[viz]'")


def draw(result: dict[str, Any], picture: Path) -> None:
    """Draw each pruned arm of each setting: under the diagonal, time was lost beside the operations.

    Parameters
    ----------
    result
        Of `run.run`.
    picture
        PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axes = figure.subplots()
    points = [entry for entry in result["entries"] if entry["realised_to_implied"] and not entry["dense"]]
    methods = list(dict.fromkeys(entry["method"] for entry in points))
    for number, method in enumerate(methods):
        mine = [entry for entry in points if entry["method"] == method]
        ratios = [entry["prefill"]["faster"] for entry in mine]
        middle = [ratio["median"] for ratio in ratios]
        errors = [[r["median"] - r["q25"] for r in ratios], [r["q75"] - r["median"] for r in ratios]]
        implied = [entry["implied"] for entry in mine]
        axes.errorbar(implied, middle, errors, fmt=MARKS[number % len(MARKS)], capsize=2, label=method)
        for entry, across, up in zip(mine, implied, middle, strict=True):
            budget = "" if entry["keep"] is None else f", {entry['keep']}"
            name = f"{entry['visual']}×{entry['batch']}{budget}"
            axes.annotate(name, (across, up), xytext=(4, 3), textcoords="offset points", fontsize=7)
    most = max([1.0, *(entry["implied"] for entry in points), *(e["prefill"]["faster"]["q75"] for e in points)])
    least = min([1.0, *(entry["implied"] for entry in points), *(e["prefill"]["faster"]["q25"] for e in points)])
    edge = (0.9 * least, 1.08 * most)
    axes.plot(edge, edge, color="0.6", linestyle="--", linewidth=1, label="all of it is time")
    axes.axhline(1, color="tab:red", linewidth=0.8, label="dense")
    axes.set(xlim=edge, ylim=edge, xlabel="FLOPs imply, × faster", ylabel="time to first token, × faster")
    axes.set_title(textwrap.fill(title(result), 90), fontsize=8)
    axes.legend(fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
