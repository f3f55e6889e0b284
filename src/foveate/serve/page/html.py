"""Answers as HTML: it loads nothing, and all text in it is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape

from foveate.measure.overlay import Panel, panel_image
from foveate.measure.tables import cost_lines, percent
from foveate.pruners.spec import brief
from foveate.serve.page.answers import Answers, Seconds

CLOCKS = {"wall": "wall time", "cpu": "CPU time of one thread"}
PARTS = {"prefill": "prefill, image encoder included, ms", "total": "prefill and answer, ms"}
CSS = """
.fv { font-size: 1rem; line-height: 1.45; overflow-wrap: anywhere; }
.fv h2 { font-size: 1.05rem; margin: 1.2rem 0 .5rem; }
.fv .fv-sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(13rem, 100%), 1fr)); gap: .75rem; }
.fv .fv-side { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .7rem .9rem; }
.fv .fv-side h3 { font-size: .9rem; margin: 0; color: var(--body-text-color-subdued); font-weight: 600; }
.fv .fv-answer { font-size: 1.25rem; margin: .35rem 0; }
.fv .fv-small { font-size: .88rem; color: var(--body-text-color-subdued); margin: .3rem 0; }
.fv .fv-note { border-left: 4px solid #c77700; padding: .3rem .7rem; margin: .7rem 0; }
.fv .fv-error { border-left: 4px solid #c62828; padding: .5rem .8rem; font-size: 1.05rem; }
.fv table { border-collapse: collapse; width: 100%; }
.fv th, .fv td { padding: .3rem .4rem; border-bottom: 1px solid var(--border-color-primary); text-align: right; }
.fv th:first-child { text-align: left; }
.fv tbody th { font-weight: 400; }
.fv .fv-panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: .75rem; }
.fv figure { margin: 0; }
.fv img { width: 100%; height: auto; border-radius: 6px; }
"""


def answers_html(answers: Answers, times: Mapping[str, Seconds] | None, clock: str) -> str:
    """Return both answers, what was kept, and the times; without `times` a line that they are being taken."""
    texts = answers.dense.texts[0], answers.pruned.texts[0]
    same = "The two answers are the same." if texts[0] == texts[1] else "The two answers differ."
    kept = answers.visual if answers.skipped else len(answers.prefill.stages[-1].kept[0])
    parts = [
        '<div class="fv"><div class="fv-sides">',
        _side("Dense", texts[0], answers.lengths[0], f"all {answers.visual} visual tokens"),
        _side("Pruned", texts[1], answers.lengths[1], f"{kept} of {answers.visual} visual tokens after the last cut"),
        f'</div><p class="fv-small" role="status">{same} Pruned by <code>{escape(brief(answers.pruner))}</code>.</p>',
    ]
    if answers.skipped:
        parts.append(_note(f"Nothing was pruned: {answers.skipped}."))
    parts += [_note(note) for note in answers.prefill.notes]
    parts += ["<h2>Cost</h2>", _cost(answers, times), _about(answers, times, clock)]
    parts += ["<h2>Kept tokens by stage</h2>", _panels(answers), "</div>"]
    return "".join(parts)


def message_html(text: str) -> str:
    """Return what went wrong, read out at once by a screen reader."""
    return f'<div class="fv"><p class="fv-error" role="alert">{escape(text)}</p></div>'


def _side(name: str, text: str, length: int, tokens: str) -> str:
    answer = escape(text) if text else "<i>(an empty answer)</i>"
    return (
        f'<section class="fv-side" aria-label="{name} answer"><h3>{name}</h3><p class="fv-answer">{answer}</p>'
        f'<p class="fv-small">{tokens}; answer of {length} tokens</p></section>'
    )


def _note(text: str) -> str:
    return f'<p class="fv-note">{escape(text)}</p>'


def _cost(answers: Answers, times: Mapping[str, Seconds] | None) -> str:
    rows = cost_lines(answers.prefill) if answers.prefill.stages else []
    for part, label in PARTS.items():
        if times is None:
            rows.append([label, "", "", "timing…"])
        else:
            one = times[part]
            rows.append([label, f"{1e3 * one.dense:.1f}", f"{1e3 * one.pruned:.1f}", percent(one.ratio, 0)])
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("", "dense", "pruned", "share"))
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for label, *cells in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _about(answers: Answers, times: Mapping[str, Seconds] | None, clock: str) -> str:
    if times is None:
        return ""
    lost = " Pruning made the prefill slower here." if times["prefill"].ratio > 1.03 else ""
    return (
        f'<p class="fv-small">Times are of this machine ({CLOCKS[clock]}, medians of alternating runs, both with as many '
        f"answer tokens as the dense answer has); look at the share.{lost}</p>"
    )


def _panels(answers: Answers) -> str:
    if answers.undrawn:
        return _note(f"No image: {answers.undrawn}.")
    return f'<div class="fv-panels">{"".join(map(_figure, answers.panels))}</div>'


def _figure(panel: Panel) -> str:
    file = io.BytesIO()
    panel_image(panel).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    what = "The image" if panel.mask is None else "The image, its dropped patches darkened"
    title = escape(panel.title)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{what}; {title}">'
        f'<figcaption class="fv-small">{title}</figcaption></figure>'
    )
