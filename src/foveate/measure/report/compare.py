"""Two results on the same questions: the second minus the first, arm by arm, paired."""

from __future__ import annotations

from typing import Any

from foveate.measure.eval.summary import LEVEL, RESAMPLES, accuracy_gap
from foveate.measure.report.read import EvalResult, ReportError
from foveate.measure.tables import Cells


def compare_results(first: EvalResult, second: EvalResult) -> dict[str, Any]:
    """Return the paired differences of accuracy of the arms that both have, as plain data.

    Parameters
    ----------
    first, second
        Each with its answers beside it; the same questions.

    Raises
    ------
    ReportError
        Answers are missing, the questions differ, or no arm is in both.
    """
    shared = [result.data["configuration"] for result in (first, second)]
    if shared[0].get("questions") != shared[1].get("questions"):
        raise ReportError(f"{first.path} and {second.path} have different questions: nothing can be paired")
    answers = first.answers(), second.answers()
    labels = [arm["arm"] for arm in first.data["arms"] if arm["arm"] in {one["arm"] for one in second.data["arms"]}]
    if not labels:
        raise ReportError(f"{first.path} and {second.path} have no arm in common")
    seed = first.data["bootstrap"]["seed"]
    return {
        "format": "foveate-comparison-1",
        "first": {"name": first.name, "model": shared[0]["model"]},
        "second": {"name": second.name, "model": shared[1]["model"]},
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": seed, "paired": True},
        "tasks": first.data["tasks"],
        "arms": [_arm(label, *(own[label] for own in answers), first.data["tasks"], seed) for label in labels],
    }


def _arm(
    label: str, old: dict[int, dict[str, Any]], new: dict[int, dict[str, Any]], tasks: list[str], seed: int
) -> dict[str, Any]:
    both = sorted(old.keys() & new.keys())
    by_task = {task: [at for at in both if old[at]["task"] == task] for task in tasks}
    return {
        "arm": label,
        **_difference(old, new, both, seed),
        "tasks": {task: _difference(old, new, places, seed) for task, places in by_task.items()},
    }


def _difference(
    old: dict[int, dict[str, Any]], new: dict[int, dict[str, Any]], places: list[int], seed: int
) -> dict[str, Any]:
    before, after = ([float(rows[at]["correct"]) for at in places] for rows in (old, new))
    return {
        "questions": len(places),
        "first": sum(before) / len(places) if places else None,
        "second": sum(after) / len(places) if places else None,
        "lost": sum(b < a for a, b in zip(before, after, strict=True)),
        "gained": sum(b > a for a, b in zip(before, after, strict=True)),
        "difference": accuracy_gap(after, before, seed=seed).to_dict(),
    }


def comparison_table(found: dict[str, Any]) -> Cells:
    """Return a comparison as a table, in per cent and points."""
    names = [found[place]["name"] for place in ("first", "second")]
    level = f"{100 * found['bootstrap']['level']:.0f} %"
    rows = []
    for arm in found["arms"]:
        for task, one in [("all", arm), *arm["tasks"].items()]:
            if not one["questions"]:
                continue
            gap = one["difference"]
            interval = f"{100 * gap['value']:+.1f} [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
            shares = [f"{100 * one[place]:.1f}" for place in ("first", "second")]
            counts = [str(one[key]) for key in ("questions", "lost", "gained")]
            rows.append([arm["arm"], task, *shares, interval, *counts])
    heads = ["arm", "task", *names, f"difference [{level}]", "questions", "lost", "gained"]
    return Cells(f"{names[1]} minus {names[0]}, accuracy in %, difference in points", heads, rows)
