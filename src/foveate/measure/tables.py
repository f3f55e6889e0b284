"""The tables of an evaluation, made from its result: the same cells for a terminal and for Markdown."""

from dataclasses import dataclass
from typing import Any

from foveate.measure.bench.timing import PrefillTime
from foveate.measure.eval.arms import DOWNSAMPLE

NOT_PRUNED, OFF_BUDGET, OUT_OF_REACH = "NOT PRUNED", "OFF BUDGET", "OUT OF REACH"
FAR_OFF = 0.03  # share of the visual tokens by which an arm may miss what was asked for, before a note says so


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


def _figure(figure: dict[str, float | None] | None, form: str) -> str:
    """Return a figure and its interval in per cent, which the head of the column says."""
    if figure is None or figure["value"] is None:
        return "–"
    value, low, high = (f"{100 * (figure[key] or 0):{form}}" for key in ("value", "low", "high"))
    return value if low == high else f"{value} [{low}, {high}]"


def _number(share: float | None, digits: int = 1) -> str:
    return percent(share, digits).removesuffix(" %")


def result_tables(result: dict[str, Any]) -> list[Cells]:
    """Return the tables of a result: accuracy, what it cost, and accuracy by task."""
    arms, tasks = result["arms"], result["tasks"]
    shared = result["configuration"]
    level = f"{100 * result['bootstrap']['level']:.0f} %"
    asked = f"{shared['samples']} questions of '{shared['suite']}', seed {shared['seed']}"
    names = [[arm["method"], "own" if arm["keep"] is None else f"{arm['keep']:g}"] for arm in arms]
    skips = any(arm["skipped"]["questions"] for arm in arms)
    accuracy = [
        [
            _number(arm["measured"]["visual_tokens_share"]),
            _number(arm["accuracy"]),
            _figure(arm["accuracy_kept"], ".1f"),
            _figure(arm["over_random"], "+.1f"),
            *([str(arm["skipped"]["questions"])] if skips else []),
        ]
        for arm in arms
    ]
    shares = ("visual_tokens_share", "mean_tokens_per_layer", "kv_share", "flops_share")
    cost = [[_number(arm["measured"][share]) for share in shares] for arm in arms]
    by_task = [[_number(arm["tasks"][task]["accuracy"], 0) for task in tasks] for arm in arms]
    heads = {
        f"Accuracy of {shared['model']} on {asked}, %": (
            ["tokens", "accuracy", f"accuracy kept [{level}]", f"over random [{level}]"] + ["not pruned"] * skips,
            accuracy,
        ),
        "What was kept, % of the dense run": (["tokens", "mean over layers", "KV cache", "FLOPs"], cost),
        "Accuracy by task, %": (tasks, by_task),
    }
    return [
        Cells(title, ["method", "keep", *columns], [[*name, *row] for name, row in zip(names, rows, strict=True)])
        for title, (columns, rows) in heads.items()
    ]


def result_notes(result: dict[str, Any]) -> list[str]:
    """Return what a reader must know beside the tables."""
    notes = [
        "What was kept is measured, not asked for: visual tokens after the last cut, their mean over the decoder "
        "layers, their share of the KV cache, FLOPs of the language model's prefill.",
        "Accuracy kept is the method's accuracy over the dense model's, over random is accuracy in points against "
        "random tokens of the same budget at the same stage; intervals are a paired bootstrap over the questions "
        f"({result['bootstrap']['resamples']} resamples).",
        *result["notes"],
        *(f"{OUT_OF_REACH}: {line}" for line in result["out_of_reach"]),
    ]
    means = [arm["method"] for arm in result["arms"] if arm["keep_is_mean"]]
    if means:
        who = "every method" if result["configuration"]["budget"] == "mean" else ", ".join(dict.fromkeys(means))
        notes.insert(0, f"For {who} keep is the mean share of visual tokens over all decoder layers.")
    for arm in result["arms"]:
        mean = arm["keep_is_mean"]
        share = arm["measured"]["mean_tokens_per_layer" if mean else "visual_tokens_share"]
        asked = _asked(arm)
        if asked and arm["method"] != DOWNSAMPLE and abs(share - asked) > FAR_OFF:
            where = " per layer on average" if mean else ""
            notes.append(f"{OFF_BUDGET}: {arm['arm']} kept {percent(share)} of the visual tokens{where}")
        for reason, count in arm["skipped"]["reasons"].items():
            notes.append(f"{NOT_PRUNED}: {arm['arm']}, {count} of {arm['questions']} questions: {reason}")
    return notes


def _asked(arm: dict[str, Any]) -> float | None:
    """The budget as a share of the visual tokens."""
    keep, measured = arm["keep"], arm["measured"]
    if not isinstance(keep, int) or not measured["visual_tokens"]:
        return keep
    return min(1.0, keep * measured["visual_tokens_share"] / measured["visual_tokens"])


def markdown(result: dict[str, Any]) -> str:
    """Return a result as a Markdown page."""
    lines: list[str] = []
    for table in result_tables(result):
        lines += [f"## {table.title}", "", *markdown_table(table), ""]
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
