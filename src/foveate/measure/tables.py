"""Tables: the same cells for a terminal and for Markdown; and what one prefill cost, beside the dense one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.measure.bench.timing import PrefillTime


@dataclass(frozen=True)
class Cells:
    """A table before it is drawn.

    Parameters
    ----------
    title
        What it shows.
    columns
        Heads; the first column is text, the others are figures without a unit, which the title has.
    rows
        One list a line.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as text, a dash for none."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def markdown_table(table: Cells, words: int = 1) -> list[str]:
    """Return the lines of a table, without its title; the first `words` columns are text."""
    rule = [":---"] * words + ["---:"] * (len(table.columns) - words)
    rows = [table.columns, rule, *table.rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in rows]


def where(layer: int) -> str:
    """Return where a stage cuts, in words."""
    return "before the language model" if layer == 0 else f"before decoder layer {layer}"


def cost_lines(prefill: Any, timed: PrefillTime | None = None) -> list[list[str]]:
    """Return `[what, dense, pruned, share]` lines of one prefill; counts are means over its samples.

    Parameters
    ----------
    prefill
        Of a pruned run.
    timed
        Its time beside the dense run's.
    """
    lines = []
    for stage in prefill.stages:
        samples, dense = len(stage.dense), sum(stage.dense)
        kept = sum(len(positions) for positions in stage.kept)
        lines.append([f"visual tokens {where(stage.layer)}", *_counts(dense, kept, samples), percent(kept / dense)])
    mean = sum(prefill.tokens_per_layer) / len(prefill.tokens_per_layer)
    share = prefill.mean_tokens_per_layer
    lines.append(["visual tokens a layer, mean", *_counts(mean / share, mean), percent(share)])
    lines.append(["visual tokens in the KV cache", "", "", percent(prefill.kv_share)])
    if prefill.flops_dense:
        ratio = prefill.flops_pruned / prefill.flops_dense
        billions = [f"{flops / 1e9:.3g}" for flops in (prefill.flops_dense, prefill.flops_pruned)]
        lines.append(["language model's prefill, GFLOPs", *billions, percent(ratio)])
    if timed is None:
        return [*lines, ["token selection, ms", "", f"{prefill.selection_ms:.1f}", ""]]
    times = [f"{timed.dense_ms:.1f}", f"{timed.pruned_ms:.1f}", percent(timed.ratio)]
    lines.append(["prefill of the batch, image encoder included, ms", *times])
    return [*lines, ["of which token selection, ms", "", f"{timed.selection_ms:.1f}", ""]]


def _counts(dense: float, kept: float, samples: int = 1) -> list[str]:
    return [f"{count / samples:.1f}".removesuffix(".0") for count in (dense, kept)]


def time_note(timed: PrefillTime) -> str:
    """Return what the time ratio says, a loss as plainly as a gain."""
    measured = f"median of {timed.runs} alternating runs, measured on this machine"
    if timed.ratio < 0.97:
        return f"Prefill took {percent(timed.ratio, 0)} of the dense run's time ({measured})."
    if timed.ratio <= 1.03:
        return (
            f"Prefill was no faster and no slower ({measured}): selection and compaction cost as much as they saved."
        )
    return (
        f"Prefill was SLOWER, {percent(timed.ratio, 0)} of the dense run's time ({measured}): for so small a model or "
        f"so few tokens, selection and compaction cost more than they save."
    )
