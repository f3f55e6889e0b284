"""What the page shows, as HTML: it loads nothing, and all text in it is escaped."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from foveate.errors import FoveateError
from foveate.measure.overlay import Panel, panel_image
from foveate.measure.tables import cost_lines, percent
from foveate.pruners.spec import brief, has_own_budget
from foveate.serve.page.answers import Answers, Asked, Seconds, SideBySide, read_image

logger = logging.getLogger(__name__)
OWN = "the method's own"  # layer
CLOCKS = {"wall": "wall time", "cpu": "CPU time of one thread"}
PARTS = {"prefill": "prefill, image encoder included, ms", "total": "prefill and answer, ms"}
LOST = 1.03  # time over the dense time; less is noise
CSS = """
.fv { font-size: 1rem; line-height: 1.45; overflow-wrap: anywhere; }
.fv h2 { font-size: 1.05rem; font-weight: 600; margin: 1.2rem 0 .5rem; }
.fv .fv-sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(13rem, 100%), 1fr)); gap: .75rem; }
.fv .fv-side { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .7rem .9rem; }
.fv .fv-side h3 { font-size: .9rem; margin: 0; font-weight: 600; }
.fv .fv-answer { font-size: 1.25rem; margin: .35rem 0; }
.fv .fv-small { font-size: .88rem; opacity: .8; margin: .3rem 0; }
.fv .fv-note { border-left: 4px solid #c77700; padding: .3rem .7rem; margin: .7rem 0; }
.fv .fv-error { border-left: 4px solid #c62828; padding: .5rem .8rem; font-size: 1.05rem; }
.fv table { border-collapse: collapse; width: 100%; font-size: .95rem; }
.fv th, .fv td { padding: .3rem 0 .3rem .6rem; border-bottom: 1px solid var(--border-color-primary); }
.fv th, .fv td { text-align: right; white-space: nowrap; vertical-align: bottom; }
.fv th:first-child { text-align: left; white-space: normal; padding-left: 0; }
.fv tbody th { font-weight: 400; }
.fv .fv-panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: .75rem; }
.fv figure { margin: 0; }
.fv img { width: 100%; height: auto; border-radius: 6px; }
"""


def shown(
    sides: SideBySide, file: str | None, question: str, method: str, keep: float, own: bool, layer: str = OWN
) -> Iterator[str]:
    """Yield what the page shows as HTML: answers, then the same with times; or a plain message.

    Parameters
    ----------
    sides
        Answers the question.
    file
        The uploaded image.
    question, method, keep
        See `Asked`.
    own
        Use the method's own budget in place of `keep`, where it has one.
    layer
        Number of a decoder layer, or `OWN`.
    """
    try:
        budget = None if own and has_own_budget(method, {}) else keep
        image = read_image(None if file is None else Path(file))
        answers = sides.answer(Asked(image, question, method, budget, None if layer == OWN else int(layer)))
        yield answers_html(answers, None, sides.clock)
        yield answers_html(answers, sides.time(answers), sides.clock)
    except FoveateError as error:
        yield message_html(" ".join(str(error).split()))
    except Exception:  # a visitor gets no trace; whoever started the page does
        logger.exception("a question could not be answered")
        yield message_html("an error that was not foreseen; the terminal that the page runs in has it")


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
    return f'<div class="fv"><p class="fv-error" role="alert">Not answered: {escape(text)}</p></div>'


def _side(name: str, text: str, length: int, tokens: str) -> str:
    answer = escape(text) if text else "<i>(an empty answer)</i>"
    return (
        f'<section class="fv-side" aria-label="{name} answer"><h3>{name}</h3><p class="fv-answer">{answer}</p>'
        f'<p class="fv-small">{tokens}; answer of {length} tokens</p></section>'
    )


def _note(text: str) -> str:
    return f'<p class="fv-note">{escape(text)}</p>'


def _cost(answers: Answers, times: Mapping[str, Seconds] | None) -> str:
    # all but the time of one selection, which is that of a first run
    rows = cost_lines(answers.prefill)[:-1] if answers.prefill.stages else []
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
    slower = [name for part, name in (("prefill", "the prefill"), ("total", "the whole")) if times[part].ratio > LOST]
    lost = f" Pruning made {' and '.join(slower)} slower here." if slower else ""
    return (
        f'<p class="fv-small">Times are of this machine ({CLOCKS[clock]}, medians of alternating runs, both with as '
        f"many answer tokens as the dense answer has); look at the share.{lost}</p>"
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
