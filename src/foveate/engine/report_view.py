"""A report in little room: a line for each entry, a plain HTML table for notebooks; tokens are counted, not listed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveate.engine.report import Prefill, Report, Stage

LINES = 6  # entries or cuts that are shown; of more, the last ones
WIDTH = 160  # of a text that someone else wrote: a reason, a note


def stage_line(stage: Stage) -> str:
    """One cut."""
    left = sum(map(len, stage.kept))
    return (
        f"before layer {stage.layer}: {left:,} of {sum(stage.dense):,} visual tokens kept"
        + _samples([len(kept) for kept in stage.kept])
        + _images([image for images in stage.per_image for image in images])
    )


def prefill_line(prefill: Prefill) -> str:
    """One prefill."""
    if prefill.skipped:
        return f"nothing pruned: {_short(prefill.skipped)}"
    parts = [_cuts(prefill.stages), f"mean per layer {prefill.mean_tokens_per_layer:.0%}"]
    parts += [f"last layer {prefill.last_layer_tokens:.0%}", f"KV cache {prefill.kv_share:.0%}"]
    if prefill.flops_dense and prefill.flops_pruned is not None:
        parts.append(f"FLOPs {prefill.flops_pruned / prefill.flops_dense:.0%}")
    if prefill.notes:
        parts.append(_number(len(prefill.notes), "note"))
    return ", ".join(parts)


def report_lines(report: Report) -> str:
    """All prefills, the last ones with a line each."""
    count, shown = report.seen, report.prefills[-LINES:]
    if not shown:
        return "no prefill yet"
    head = _number(count, "prefill") + (f", the last {len(shown)}" if count > len(shown) else "")
    first = count - len(shown)
    return "\n".join([f"{head}:", *(f"  {first + at}: {prefill_line(entry)}" for at, entry in enumerate(shown))])


def prefill_html(prefill: Prefill) -> str:
    """A table of what was kept, with the dense run beside it."""
    if prefill.skipped:
        return f"<p>nothing pruned: {escape(_short(prefill.skipped))}</p>"
    rows = []
    shown = prefill.stages[-LINES:]
    if len(prefill.stages) > len(shown):
        rows.append((f"{len(prefill.stages) - len(shown)} earlier cuts", "", "", ""))
    for stage in shown:
        dense, left = sum(stage.dense), sum(map(len, stage.kept))
        samples = _samples([len(kept) for kept in stage.kept])
        what = f"visual tokens before decoder layer {stage.layer}{samples}"
        rows.append((what, f"{dense:,}", f"{left:,}", f"{left / dense:.1%}" if dense else ""))
    rows += [
        ("visual tokens a layer, mean", "", "", f"{prefill.mean_tokens_per_layer:.1%}"),
        ("visual tokens at the last layer", "", "", f"{prefill.last_layer_tokens:.1%}"),
        ("visual tokens in the KV cache", "", "", f"{prefill.kv_share:.1%}"),
    ]
    if prefill.flops_dense and prefill.flops_pruned is not None:
        share = prefill.flops_pruned / prefill.flops_dense
        rows.append(
            (
                "GFLOPs of the decoder layers, mean of a sample",
                _giga(prefill.flops_dense),
                _giga(prefill.flops_pruned),
                f"{share:.1%}",
            )
        )
    rows += [
        ("choosing the tokens, ms", "", f"{prefill.selection_ms:.1f}", ""),
        ("cutting the others, ms", "", f"{prefill.compaction_ms:.1f}", ""),
    ]
    notes = "".join(f"<p>note: {escape(_short(note))}</p>" for note in prefill.notes[:LINES])
    more = len(prefill.notes) - LINES
    return _table(("", "dense", "pruned", "share"), rows) + notes + (f"<p>and {more} more</p>" if more > 0 else "")


def report_html(report: Report) -> str:
    """The last prefill in full; before it, where there are several, a row for each."""
    if not report.prefills:
        return "<p>the model has not run since the pruner was attached</p>"
    last = prefill_html(report.prefills[-1])
    count = report.seen
    if count == 1:
        return last
    shown = report.prefills[-LINES:]
    rows = [
        (
            str(number),
            f"{entry.mean_tokens_per_layer:.1%}",
            f"{entry.kv_share:.1%}",
            _what(entry),
        )
        for number, entry in enumerate(shown, count - len(shown))
    ]
    before = f", the last {len(shown)}" if count > len(shown) else ""
    head = ("prefill", "visual tokens a layer, mean", "KV cache", "what was kept")
    return f"<p>{count} prefills{before}:</p>{_table(head, rows, words=(0, 3))}<p>The last one:</p>{last}"


def _what(prefill: Prefill) -> str:
    return f"nothing pruned: {_short(prefill.skipped)}" if prefill.skipped else _cuts(prefill.stages)


def _cuts(stages: Sequence[Stage]) -> str:
    if not stages:
        return "no cut"
    last = stages[-1]
    more = f"{len(stages)} cuts from layer {stages[0].layer} on, the last " if len(stages) > 1 else ""
    return more + stage_line(last)


def _samples(counts: Sequence[int]) -> str:
    """What the number of tokens is in each of several samples."""
    if len(counts) < 2:
        return ""
    least, most = min(counts), max(counts)
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f" in {len(counts)} samples ({each} each)"


def _images(images: Sequence[tuple[int, int]]) -> str:
    return f", {len(images)} images" if len(images) > 1 else ""


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.0f}" if flops >= 1e11 else f"{flops / 1e9:.3g}"


def _short(text: str) -> str:
    return textwrap.shorten(text, WIDTH, placeholder=" …")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """HTML without a style of its own, but for figures on the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = ["left" if at in words else "right" for at in range(len(cells))]
        found = (
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return f"<tr>{''.join(found)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<table border="1"><thead>{line("th", head)}</thead><tbody>{body}</tbody></table>'
