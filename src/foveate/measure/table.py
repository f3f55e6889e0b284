"""The tables of an evaluation, made from its result: the same cells for a terminal and for Markdown."""

from dataclasses import dataclass
from typing import Any

from foveate.measure.arms import DOWNSAMPLE

NOT_PRUNED, OFF_BUDGET = "NOT PRUNED", "OFF BUDGET"
FAR_OFF = 0.03  # share of the visual tokens by which an arm may miss what was asked for, before a note says so


@dataclass(frozen=True)
class Cells:
    """A table before it is drawn.

    Parameters
    ----------
    title : str
        What it shows.
    columns : list of str
        Heads; the first column is text, the others are figures.
    rows : list of list of str
        One list a line.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as text, a dash for none."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def _interval(figure: dict[str, float | None]) -> str:
    if figure["value"] is None:
        return "–"
    if figure["low"] == figure["high"]:
        return percent(figure["value"])
    return f"{100 * figure['value']:.1f} % [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"  # type: ignore[operator]


def _gap(figure: dict[str, float | None] | None) -> str:
    if figure is None or figure["value"] is None:
        return "–"
    return f"{100 * figure['value']:+.1f} [{100 * figure['low']:+.1f}, {100 * figure['high']:+.1f}]"  # type: ignore[operator]


def result_tables(result: dict[str, Any]) -> list[Cells]:
    """Return the tables of a result: what was kept and what it cost, then accuracy by task."""
    arms, tasks = result["arms"], result["tasks"]
    shared = result["configuration"]
    skips = any(arm["skipped"]["questions"] for arm in arms)
    overview = [
        [
            arm["arm"],
            percent(arm["measured"]["visual_tokens_share"]),
            percent(arm["measured"]["mean_tokens_per_layer"]),
            percent(arm["measured"]["kv_share"]),
            percent(arm["measured"]["flops_share"]),
            percent(arm["accuracy"]),
            _interval(arm["accuracy_kept"]),
            _gap(arm["over_random"]),
            *([str(arm["skipped"]["questions"])] if skips else []),
        ]
        for arm in arms
    ]
    by_task = [[arm["arm"], *(percent(arm["tasks"][task]["accuracy"], 0) for task in tasks)] for arm in arms]
    level = f"{100 * result['bootstrap']['level']:.0f} %"
    return [
        Cells(
            f"{shared['model']} on {shared['samples']} questions of '{shared['suite']}', seed {shared['seed']}",
            [
                "method @ keep",
                "visual tokens",
                "mean over layers",
                "KV cache",
                "FLOPs",
                "accuracy",
                f"accuracy kept [{level}]",
                "over random, points",
                *(["not pruned"] if skips else []),
            ],
            overview,
        ),
        Cells("Accuracy by task", ["method @ keep", *tasks], by_task),
    ]


def result_notes(result: dict[str, Any]) -> list[str]:
    """Return what a reader must know beside the tables."""
    notes = [
        "Shares are of the dense run and measured, not asked for: visual tokens after the last cut, their mean over "
        "the decoder layers, their place in the KV cache, FLOPs of the language model's prefill.",
        "Accuracy kept is the method's accuracy over the dense model's; intervals are a paired bootstrap over the "
        f"questions ({result['bootstrap']['resamples']} resamples).",
        *result["notes"],
    ]
    for arm in result["arms"]:
        share = arm["measured"]["visual_tokens_share"]
        if arm["keep"] and arm["method"] != DOWNSAMPLE and abs(share - arm["keep"]) > FAR_OFF:
            notes.append(f"{OFF_BUDGET}: {arm['arm']} kept {percent(share)} of the visual tokens")
        for reason, count in arm["skipped"]["reasons"].items():
            notes.append(f"{NOT_PRUNED}: {arm['arm']}, {count} of {arm['questions']} questions: {reason}")
    return notes


def markdown(result: dict[str, Any]) -> str:
    """Return a result as a Markdown page."""
    lines: list[str] = []
    for table in result_tables(result):
        lines += [f"## {table.title}", "", _line(table.columns)]
        lines += [_line([":---", *["---:"] * (len(table.columns) - 1)]), *map(_line, table.rows), ""]
    lines += [f"* {note}" for note in result_notes(result)]
    shared, machine = result["configuration"], result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in shared["versions"].items())
    lines += [
        f"* Weights {shared['weights']}, {shared['dtype']}, {machine['device']} ({machine['cpu']}); {versions}.",
        "",
        "```",
        result["command"],
        "```",
    ]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
