"""A report as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from PIL import Image

from foveate.measure.eval.arms import DENSE
from foveate.measure.eval.tables import result_notes, result_tables
from foveate.measure.report.charts import ALL, costs, draw_budget, draw_cost, svg
from foveate.measure.report.compare import comparison_table
from foveate.measure.report.read import EvalResult, ReportError
from foveate.measure.tables import Cells

# a browser loads nothing from elsewhere, even if a question or a file's name tried to make it
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
WORDS = 2  # columns of a result's tables that are text
PALEST, DARKEST = 0.05, 0.6  # of the heat map


def page(results: Sequence[EvalResult], comparison: dict[str, Any] | None = None) -> str:
    """Return the report of some results as HTML.

    Parameters
    ----------
    results
        At least one; they stand one below the other, and their galleries together.
    comparison
        Of `compare_results`, to stand before them.

    Raises
    ------
    ReportError
        An image of a gallery cannot be read.
    """
    entries = [entry for result in results for entry in _gallery(result)]
    tasks = list(dict.fromkeys(task for result in results for task in result.data["tasks"]))
    labels = list(dict.fromkeys(label for entry in entries for label in entry["answers"] if label != DENSE))
    names = ", ".join(result.title for result in results)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>foveate: {escape(names)}</title>",
        f"<style>{_asset('page.css')}</style></head><body>",
        "<h1>What pruning keeps</h1>",
        _choose("bar top", [("task", "Task", [(ALL, "all tasks"), *((task, task) for task in tasks)])]),
        '<svg id="svg-space" hidden></svg>',
    ]
    if comparison is not None:
        parts += ["<h2>Comparison</h2>", _table(comparison_table(comparison), 2)]
    parts += [_section(number, result) for number, result in enumerate(results)]
    if labels:
        parts.append(_examples(entries, labels))
    # "<" as an escape: no text of a question or an answer ends the script
    data = json.dumps(entries, ensure_ascii=False).replace("<", "\\u003c")
    parts += [
        f'<script id="data" type="application/json">{data}</script>',
        f"<script>{_asset('page.js')}</script>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _asset(name: str) -> str:
    return (files("foveate.measure.report") / name).read_text(encoding="utf-8")


def _section(number: int, result: EvalResult) -> str:
    data = result.data
    accuracy, cost, by_task, *more = result_tables(data)
    notes = "".join(f"<li>{escape(note)}</li>" for note in result_notes(data))
    made = data.get("created", "an unknown time")
    level = f"{100 * data['bootstrap']['level']:.0f} %"
    return "\n".join(
        [
            f"<section><h2>{escape(result.title)}</h2>",
            f'<p class="soft">{escape(result.name)}, seed {data["configuration"]["seed"]}, made at {escape(made)}. '
            f"Intervals: {level}, paired over the questions.</p>",
            '<div class="charts">',
            *_charts(number, result),
            "</div>",
            _table(accuracy, WORDS),
            _table(cost, WORDS),
            *([_times(data)] if result.timed else []),
            _heat_map(by_task, data),
            *(_table(table, WORDS) for table in more),
            f"<h3>Notes</h3><ul>{notes}</ul>",
            f"<pre>{escape(data.get('command', ''))}</pre></section>",
        ]
    )


def _charts(number: int, result: EvalResult) -> Iterable[str]:
    for task in [ALL, *result.data["tasks"]]:
        where = "all tasks" if task == ALL else f"task {task}"
        drawn = svg(lambda axes, task=task: draw_budget(axes, result, task), f"{number} budget {task}")
        yield _figure(drawn, f"Accuracy kept over the budget, {where}", task, hidden=task != ALL)
    says = {
        "prefill": "Accuracy kept over the measured time of the prefill",
        "total": "Accuracy kept over the measured time of the whole answer",
        "flops": "Accuracy kept over FLOPs of the prefill",
    }
    for kind in costs(result):
        drawn = svg(lambda axes, kind=kind: draw_cost(axes, result, kind), f"{number} cost {kind}")
        yield _figure(drawn, f"{says[kind]}; filled and joined: no other arm, but for the oracle, is better in both")


def _figure(drawn: str, says: str, task: str | None = None, hidden: bool = False) -> str:
    about = "" if task is None else f' data-task="{escape(task)}"'
    named = drawn.replace("<svg", f'<svg aria-label="{escape(says)}"', 1)
    return f"<figure{about}{' hidden' * hidden}>{named}<figcaption>{escape(says)}</figcaption></figure>"


def _table(table: Cells, words: int) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in table.columns)
    rows = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in table.rows]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<h3>{escape(table.title)}</h3><div class="wide" tabindex="0"><table><tr>{heads}</tr>{body}</table></div>'


def _times(data: dict[str, Any]) -> str:
    about = data["time"]
    rows = [
        [
            arm["method"],
            "own" if arm["keep"] is None else str(arm["keep"]),
            *(f"{arm['time'][f'{part}_ms']:.1f}" for part in ("prefill", "total")),
            *(f"{one['median']:.2f} [{one['q25']:.2f}, {one['q75']:.2f}]" for one in _faster(arm)),
        ]
        for arm in data["arms"]
    ]
    title = (
        f"Time of a batch of {about['batch_size']}, {about['new_tokens']} new tokens, beside the dense model: median "
        f"[quartiles] of {about['rounds']} alternating rounds ({about['clock']} clock)"
    )
    return _table(
        Cells(title, ["method", "keep", "prefill, ms", "total, ms", "prefill, × faster", "total, × faster"], rows),
        WORDS,
    )


def _faster(arm: dict[str, Any]) -> list[dict[str, float]]:
    return [arm["time"][f"{part}_faster"] for part in ("prefill", "total")]


def _heat_map(table: Cells, data: dict[str, Any]) -> str:
    """Accuracy by task: the darker, the nearer to the dense model's; the figures stand in the cells."""
    tasks = data["tasks"]
    heads = "".join(f"<th>{escape(head)}</th>" for head in table.columns[:WORDS])
    heads += "".join(f'<th data-column="{escape(task)}">{escape(task)}</th>' for task in tasks)
    known = [one["accuracy_kept"]["value"] for arm in data["arms"] for one in arm["tasks"].values()]
    least = min((value for value in known if value is not None), default=0.0)
    body = []
    for row, arm in zip(table.rows, data["arms"], strict=True):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[:WORDS])
        for task, cell in zip(tasks, row[WORDS:], strict=True):
            kept = arm["tasks"][task]["accuracy_kept"]["value"]
            part = (min(1.0, kept) - least) / (1 - least) if kept is not None and least < 1 else 0.0
            share = PALEST + (DARKEST - PALEST) * part
            style = f'class="heat" style="--share: {share:.2f}" data-column="{escape(task)}"'
            cells += f"<td {style}>{escape(cell)}</td>"
        body.append(f"<tr>{cells}</tr>")
    title = f"{table.title} (the darker, the more of the dense model's is kept)"
    return (
        f'<h3>{escape(title)}</h3><div class="wide" tabindex="0"><table><tr>{heads}</tr>{"".join(body)}</table></div>'
    )


def _choose(kind: str, selects: Sequence[tuple[str, str, Sequence[tuple[str, str]]]], more: str = "") -> str:
    made = []
    for name, says, choices in selects:
        options = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in choices)
        made.append(f'<label>{escape(says)}<select id="{name}">{options}</select></label>')
    return f'<div class="{kind}">{"".join(made)}{more}</div>'


def _examples(entries: list[dict[str, Any]], labels: list[str]) -> str:
    """The kept tokens of every arm on one image, and the gallery; a script fills both."""
    arms = [(label, label) for label in labels]
    worst = max(labels, key=lambda label: sum(_lost(entry, label) for entry in entries))
    arms.sort(key=lambda one: one[0] != worst)  # stable: the arm that loses most comes first
    changes = [
        ("changed", "changed answers"),
        ("lost", "right answers lost"),
        ("gained", "right answers gained"),
        ("other", "other words, as right as before"),
        ("every", "all of them"),
    ]
    images = [(str(at), f"{entry['task']}: {entry['question']}") for at, entry in enumerate(entries)]
    search = '<label>Search<input id="words" type="search" placeholder="words of a question or an answer"></label>'
    return "\n".join(
        [
            "<h2>Kept tokens on the same image</h2>",
            _choose("bar", [("image", "Question", images)]),
            '<p id="asked"></p><div id="strip" class="strip"></div>',
            "<p class='soft'>Dimmed: dropped. Dashed: the evidence, the tokens that the answer lies under.</p>",
            "<h2>Answers that changed</h2>",
            _choose("bar", [("arm", "Arm", arms), ("change", "Answers", changes)], search),
            '<p class="soft"><span id="count"></span>, of the task chosen above</p>',
            '<div id="cards" class="cards"></div>',
            "<noscript>The gallery needs JavaScript; charts and tables do not.</noscript>",
        ]
    )


def _lost(entry: dict[str, Any], label: str) -> bool:
    own = entry["answers"].get(label)
    return own is not None and entry["answers"][DENSE]["correct"] > own["correct"]


def _gallery(result: EvalResult) -> Iterable[dict[str, Any]]:
    for entry in result.gallery:
        path = result.image(entry)
        try:
            data = path.read_bytes()
            with Image.open(path) as image:
                size = list(image.size)
        except OSError as error:
            raise ReportError(f"cannot read {path}, an image of the gallery: {error}") from error
        encoded = base64.b64encode(data).decode("ascii")
        yield {"boxes": [], **entry, "result": result.name, "size": size, "data": f"data:image/jpeg;base64,{encoded}"}
