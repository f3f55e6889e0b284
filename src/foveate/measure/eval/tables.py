"""The tables of an evaluation, made from its result."""

from __future__ import annotations

from typing import Any

from foveate.measure.budget import AFTER, WORDS
from foveate.measure.eval.arms import DOWNSAMPLE
from foveate.measure.tables import Cells, markdown_table, percent

NOT_PRUNED, OFF_BUDGET, OUT_OF_REACH = "NOT PRUNED", "OFF BUDGET", "OUT OF REACH"
FAR_OFF = 0.03  # share of the visual tokens by which an arm may miss what was asked for, before a note says so


def _figure(figure: dict[str, float | None] | None, form: str) -> str:
    """Return a figure and its interval in per cent, which the head of the column says."""
    if figure is None or figure["value"] is None:
        return "–"
    value, low, high = (f"{100 * (figure[key] or 0):{form}}" for key in ("value", "low", "high"))
    return value if low == high else f"{value} [{low}, {high}]"


def _by_suite(arm: dict[str, Any], suites: list[str]) -> list[str]:
    own = [arm["suites"][name] for name in suites]
    return [cell for one in own for cell in (_number(one["accuracy"]), _figure(one["accuracy_kept"], ".1f"))]


def _number(share: float | None, digits: int = 1) -> str:
    return percent(share, digits).removesuffix(" %")


def _metric(figures: dict[str, Any] | None) -> list[str]:
    """Mean, and difference to the dense model with its interval, three digits each."""
    if figures is None:
        return ["–", "–"]
    value, low, high = (figures["to_dense"][key] for key in ("value", "low", "high"))
    gap = f"{value:+.3f}" if low == high else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    return [f"{figures['mean']:.3f}", gap]


def result_tables(result: dict[str, Any]) -> list[Cells]:
    """Return the tables of a result: accuracy, what it cost, and accuracy by task."""
    arms, tasks = result["arms"], result["tasks"]
    shared = result["configuration"]
    level = f"{100 * result['bootstrap']['level']:.0f} %"
    asked = f"{shared['samples']} questions of '{shared['suite']}', seed {shared['seed']}"
    names = [[arm["method"], "own" if arm["keep"] is None else str(arm["keep"])] for arm in arms]
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
    if suites := result.get("suites"):  # none of one suite, and none in older results
        columns = [head for name in suites for head in (name, f"{name} kept [{level}]")]
        heads["Accuracy by suite, %"] = (columns, [_by_suite(arm, suites) for arm in arms])
    names_of = list(dict.fromkeys(name for arm in arms for name in arm.get("metrics", {})))  # none in older results
    if names_of:
        columns = [head for name in names_of for head in (name, f"{name} – dense [{level}]")]
        cells = [[cell for name in names_of for cell in _metric(arm.get("metrics", {}).get(name))] for arm in arms]
        heads["Metrics, 0 to 1; kl in nats"] = (columns, cells)
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
    budget = result["configuration"].get("budget", AFTER)
    cost = {"kv": "kv_share", "flops": "flops_share"}.get(budget)
    if cost:
        notes.insert(0, f"For every method keep is {WORDS[budget]}, solved for the first question's prompt.")
    if means:
        who = "every method" if budget == "mean" else ", ".join(dict.fromkeys(means))
        notes.insert(0, f"For {who} keep is the mean share of visual tokens over all decoder layers.")
    for arm in result["arms"]:
        mean = arm["keep_is_mean"]
        share = arm["measured"][cost or ("mean_tokens_per_layer" if mean else "visual_tokens_share")]
        asked = _asked(arm)
        if asked and share is not None and arm["method"] != DOWNSAMPLE and abs(share - asked) > FAR_OFF:
            where = " per layer on average" if mean else {"kv": " in the KV cache"}.get(budget, "")
            what = "FLOPs" if budget == "flops" else "visual tokens"
            notes.append(f"{OFF_BUDGET}: {arm['arm']} kept {percent(share)} of the {what}{where}")
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
