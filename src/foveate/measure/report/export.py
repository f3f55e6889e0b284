"""Results as CSV, for any other tool, and as a LaTeX table, for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from foveate.measure.report.read import EvalResult
from foveate.measure.tables import Cells

MEASURED = ("visual_tokens", "visual_tokens_share", "mean_tokens_per_layer", "kv_share", "flops_share")
TIMES = ("prefill_faster", "total_faster")
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "×": r"$\times$",
}  # fmt: skip


def as_csv(results: Sequence[EvalResult]) -> str:
    """Return every arm of every result by task, `all` first, with intervals; shares, not per cent."""
    heads = [
        *("result", "model", "suite", "seed", "arm", "method", "keep", "task", "questions", "right", "accuracy"),
        *("accuracy_kept", "accuracy_kept_low", "accuracy_kept_high"),
        *MEASURED,
        *(f"{name}_{part}" for name in TIMES for part in ("median", "q25", "q75")),
    ]
    lines = []
    for result in results:
        shared = result.data["configuration"]
        for arm in result.data["arms"]:
            own = [
                result.name,
                shared["model"],
                shared["suite"],
                shared["seed"],
                arm["arm"],
                arm["method"],
                arm["keep"],
            ]
            cost = [arm["measured"].get(name) for name in MEASURED]
            times = [
                arm.get("time", {}).get(name, {}).get(part) for name in TIMES for part in ("median", "q25", "q75")
            ]
            for task, one in [("all", arm), *arm["tasks"].items()]:
                kept = one["accuracy_kept"]
                figures = [one["questions"], one["right"], one["accuracy"], kept["value"], kept["low"], kept["high"]]
                lines.append([*own, task, *figures, *cost, *times])
    return _csv(heads, lines)


def cells_csv(table: Cells) -> str:
    """Return a table as CSV."""
    return _csv(table.columns, table.rows)


def _csv(heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([heads, *lines])
    return text.getvalue()


def as_latex(results: Sequence[EvalResult]) -> str:
    """Return a table for a paper (package booktabs): accuracy, accuracy kept with its interval, and what it costs."""
    timed = any(result.timed for result in results)
    heads = ["Method", "Keep", "Tokens/layer", "Accuracy", "Kept"] + ["Prefill", "Total"] * timed
    lines = []
    for result in results:
        lines.append(rf"\multicolumn{{{len(heads)}}}{{l}}{{{escape(result.title)}}} \\")
        for arm in result.data["arms"]:
            lines.append(" & ".join([*_row(arm), *(_times(arm) if timed else [])]) + r" \\")
        lines.append(r"\midrule")
    notes = [f"% {result.data['command']}" for result in results if "command" in result.data]
    level = 100 * results[0].data["bootstrap"]["level"]
    says = f"% Per cent; Kept is accuracy over the dense model's, with its paired bootstrap interval ({level:.0f} %)."
    return "\n".join([says, *notes, *_tabular(heads, lines[:-1], 1)])


def cells_latex(table: Cells, words: int = 1) -> str:
    """Return a table as LaTeX; the first `words` columns are text."""
    lines = [" & ".join(map(escape, row)) + r" \\" for row in table.rows]
    return "\n".join([f"% {table.title}", *_tabular([escape(head) for head in table.columns], lines, words)])


def _tabular(heads: Sequence[str], lines: Sequence[str], words: int) -> list[str]:
    columns = "l" * words + "r" * (len(heads) - words)
    begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    return [*begin, *lines, r"\bottomrule", r"\end{tabular}", ""]


def _row(arm: dict[str, Any]) -> list[str]:
    keep = "--" if arm["keep"] is None else str(arm["keep"])
    kept = arm["accuracy_kept"]
    figure = "--"
    if kept["value"] is not None:
        value, low, high = (100 * (kept[end] or 0) for end in ("value", "low", "high"))
        figure = f"{value:.1f}" if low == high else rf"{value:.1f} {{\scriptsize [{low:.1f}, {high:.1f}]}}"
    mean = arm["measured"]["mean_tokens_per_layer"]
    return [
        escape(arm["method"]),
        keep,
        "--" if mean is None else f"{100 * mean:.1f}",
        f"{100 * arm['accuracy']:.1f}",
        figure,
    ]


def _times(arm: dict[str, Any]) -> list[str]:
    if "time" not in arm:
        return ["--", "--"]
    return [rf"{arm['time'][name]['median']:.2f}$\times$" for name in TIMES]


def escape(text: str) -> str:
    """Return text with what LaTeX would read as a command escaped."""
    return "".join(SPECIAL.get(sign, sign) for sign in text)
