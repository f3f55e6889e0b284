"""A training as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], picture: Path) -> bool:
    """Draw losses and held-out figures over the updates; without matplotlib nothing is drawn, and False given.

    Parameters
    ----------
    result
        As in training.json.
    picture
        PNG.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name, title in (("answer_loss", "answer"), ("dice", "Dice"), ("bce", "BCE")):
        points = [(row["step"], row[name]) for row in result["history"] if name in row]
        if points:
            upper.plot(*zip(*points, strict=True), label=title)
    upper.set(ylabel="loss", ylim=(0, None), title="training")
    if upper.lines:
        upper.legend()
    checks = result["checks"]
    for name, title in (("recall", "evidence tokens kept"), ("accuracy", "accuracy"), ("kept", "visual tokens kept")):
        if checks:
            known = [row for row in checks if row[name] is not None]
            lower.plot([row["step"] for row in known], [100 * row[name] for row in known], marker=".", label=title)
    cap = result["configuration"]["max_keep"]
    lower.set(
        xlabel="updates", ylabel="%", ylim=(0, 103), title="held out" + (f", at most {cap:.1%} kept" if cap else "")
    )
    if lower.lines:
        lower.legend()
    figure.savefig(picture, dpi=110)
    return True
