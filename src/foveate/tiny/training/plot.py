"""The training curve as a figure."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from foveate.tiny.questions import LONG_TASKS, SHORT_TASKS
from foveate.tiny.training.pool import LABELS

logger = logging.getLogger(__name__)


def plot_log(log: Path, picture: Path) -> bool:
    """Plot patch labels, short and long tasks over the steps; without matplotlib nothing is drawn, and False given."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("matplotlib is not installed, so %s is not drawn", picture)
        return False

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    labels, short, long = figure.subplots(1, 3)
    rows = [line for line in lines if line["stage"] == "vision"]
    for name in LABELS[:-1]:
        labels.plot([r["step"] for r in rows], [100 * r[name] for r in rows], label=name)
    labels.set(title="stage A: patch labels (training batches)", ylabel="% of labelled patches")
    # A run that was resumed repeats the steps after its checkpoint: the later line is the one that counts.
    rows = list({r["step"]: r for r in lines if r["stage"] == "language" and "short" in r}.values())
    grown = [r["step"] for r in rows if r["first_layer"] == 0]
    for axes, name, tasks in ((short, "short", SHORT_TASKS), (long, "long", LONG_TASKS)):
        for task in tasks:
            axes.plot([r["step"] for r in rows], [r.get(task) for r in rows], label=task, linewidth=1)
        axes.plot([r["step"] for r in rows], [r[name] for r in rows], label="mean", color="black", linewidth=2)
        axes.set(title=f"stage B: held-out questions, {name} answers", ylabel="% answered exactly")
        if grown:
            axes.axvline(grown[0], color="grey", linestyle=":")
    for axes in (labels, short, long):
        axes.set(xlabel="step", ylim=(0, 101))
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
    return True
