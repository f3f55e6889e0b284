"""`python -m foveate.tiny.reading.plot RUN PICTURE`: the curves of a run, also of one under way."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from foveate.tiny.reading.pool import LABELS
from foveate.tiny.reading.questions import LONG_TASKS, SHORT_TASKS


def plot_log(log: Path, picture: Path) -> None:
    """Plot patch labels, short tasks and long tasks over the steps; needs matplotlib."""
    from matplotlib.figure import Figure

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


def main() -> None:
    """Plot the log of a run folder."""
    parser = argparse.ArgumentParser(prog="python -m foveate.tiny.reading.plot", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    asked = parser.parse_args()
    plot_log(asked.run / "log.jsonl", asked.picture)


if __name__ == "__main__":
    main()
