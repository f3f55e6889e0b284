"""The training curve as a figure."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from foveate.tiny.questions import TASKS

logger = logging.getLogger(__name__)


def plot_log(log: Path, picture: Path) -> bool:
    """Plot both stages of a log; without matplotlib nothing is drawn and False is given."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("matplotlib is not installed, so %s is not drawn", picture)
        return False
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [line for line in lines if line["stage"] == "vision"]
    for name in ("kind", "colour", "size", "digit", "next_digit"):
        left.plot([r["step"] for r in rows], [100 * r[name] for r in rows], label=name.replace("_", " "))
    left.set(
        title="stage A: patch labels (training batches)", xlabel="step", ylabel="% of labelled patches", ylim=(0, 100)
    )
    rows = [line for line in lines if line["stage"] == "language" and "mean" in line]
    for name in TASKS:
        right.plot([r["step"] for r in rows], [r.get(name) for r in rows], label=name, linewidth=1)
    right.plot([r["step"] for r in rows], [r["mean"] for r in rows], label="mean", color="black", linewidth=2)
    right.set(title="stage B: held-out questions", xlabel="step", ylabel="% answered exactly", ylim=(0, 101))
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
    return True
