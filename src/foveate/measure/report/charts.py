"""Charts of an evaluation, for a page and for a file; they can be read in grey."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveate.measure.eval.arms import DENSE, DOWNSAMPLE, RANDOM, Evidence
from foveate.measure.report.read import EvalResult, ReportError

MARKS = "osD^vP*X<>hp"
LINES = ("-", "--", "-.", ":")
SIZE = (4.6, 4.2)  # inches; narrow, so that its text can be read on a phone
ALL = "all"
BUDGETS = {
    "after": "visual tokens kept",
    "mean": "visual tokens per layer, mean",
    "kv": "visual tokens in the KV cache",
    "flops": "FLOPs of the prefill",
}


def need_matplotlib() -> None:
    """Raise unless charts can be drawn.

    Raises
    ------
    ReportError
        With the command that installs what is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ReportError("the charts of a report need matplotlib: pip install 'foveate[viz]'")


def figure_of(arm: dict[str, Any], task: str) -> dict[str, float | None]:
    """Return accuracy kept of an arm, on one task or on all, with its interval."""
    found: dict[str, float | None] = (arm if task == ALL else arm["tasks"][task])["accuracy_kept"]
    return found


def budget_of(arm: dict[str, Any]) -> float:
    """Return the budget that was asked for; where that is no share, the share that was kept."""
    keep = arm["keep"]
    return keep if isinstance(keep, float) else arm["measured"]["visual_tokens_share"]


def cost_of(arm: dict[str, Any], kind: str) -> float | None:
    """Return what an arm costs as a share of the dense model: `prefill` or `total` time, or `flops`."""
    if kind == "flops":
        found: float | None = arm["measured"]["flops_share"]
        return found
    return 1 / arm["time"][f"{kind}_faster"]["median"]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the points, (cost, value), that no other one beats or equals in both, by cost."""
    order = sorted(range(len(points)), key=lambda at: (points[at][0], -points[at][1]))
    best, found = float("-inf"), []
    for at in order:
        if points[at][1] > best:
            best = points[at][1]
            found.append(at)
    return found


def draw_budget(axes: Any, result: EvalResult, task: str = ALL) -> None:
    """Draw accuracy kept over the budget, a line for each method, with intervals."""
    for number, (method, arms) in enumerate(_methods(result).items()):
        shown = sorted((arm for arm in arms if figure_of(arm, task)["value"] is not None), key=budget_of)
        if method == DENSE or not shown:
            continue
        figures = [_percents(figure_of(arm, task)) for arm in shown]
        middle = [value for value, _, _ in figures]
        errors = [[v - low for v, low, _ in figures], [high - v for v, _, high in figures]]
        across = [100 * budget_of(arm) for arm in shown]
        axes.errorbar(across, middle, errors, label=method, **_style(number, method))
    axes.axhline(100, color="0.3", linewidth=0.8, label=DENSE)
    axes.set(
        xlabel=f"budget: {BUDGETS[result.data['configuration']['budget']]}, %",
        ylabel="accuracy kept, % of dense",
    )


def draw_cost(axes: Any, result: EvalResult, kind: str) -> None:
    """Draw accuracy kept over cost; the arms that no other beats are filled, named and joined."""
    arms = [arm for arm in result.data["arms"] if _has_both(arm, kind)]
    points = [(100 * (cost_of(arm, kind) or 0), _percents(figure_of(arm, ALL))[0]) for arm in arms]
    real = [
        at for at, arm in enumerate(arms) if arm["method"].split(":")[0] != Evidence.name
    ]  # the oracle is no method
    best = [real[at] for at in front([points[at] for at in real])]
    methods = list(_methods(result))
    named: set[str] = set()
    for at, (arm, (across, up)) in enumerate(zip(arms, points, strict=True)):
        style = _style(methods.index(arm["method"]), arm["method"])
        face = style["color"] if at in best else "white"
        _, low, high = _percents(figure_of(arm, ALL))
        sides = None
        if kind != "flops":
            times = arm["time"][f"{kind}_faster"]
            sides = [[across - 100 / times["q75"]], [100 / times["q25"] - across]]
        style |= {"fmt": style["fmt"][0], "mfc": face, "label": None if arm["method"] in named else arm["method"]}
        named.add(arm["method"])
        axes.errorbar(
            [across], [up], [[up - low], [high - up]], [[max(0.0, s[0])] for s in sides] if sides else None, **style
        )
        if at in best:
            axes.annotate(arm["arm"], (across, up), xytext=(4, 5), textcoords="offset points", fontsize=6.5)
    axes.step([points[at][0] for at in best], [points[at][1] for at in best], where="post", color="0.3", linewidth=0.8)
    words = {
        "prefill": "time of the prefill, % of dense",
        "total": "time of the whole answer, % of dense",
        "flops": "FLOPs of the prefill, % of dense (counted)",
    }
    axes.set(xlabel=words[kind], ylabel="accuracy kept, % of dense")


def svg(draw: Callable[[Any], None], name: str) -> str:
    """Return a chart as SVG to stand in a page: text stays text, no address, ids that no other chart has.

    Parameters
    ----------
    draw
        Given the axes.
    name
        Different for each chart of a page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        _legend(figure, axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    body = text.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = (
        re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", body[: body.index(">")]) + body[body.index(">") :]
    )
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # the same in each chart, and nothing refers to them
    return body.replace("xlink:href", "href").replace("<svg", '<svg role="img"', 1)


def draw_png(results: Sequence[EvalResult], picture: Path) -> None:
    """Write a figure: a row for each result, with accuracy over budget and over each cost.

    Parameters
    ----------
    results
        At least one.
    picture
        PNG.
    """
    from matplotlib.figure import Figure

    columns = 1 + max(len(costs(result)) for result in results)
    figure = Figure(figsize=(4.6 * columns, 4.4 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), columns, squeeze=False)
    for row, result in zip(grid, results, strict=True):
        draw_budget(row[0], result)
        row[0].set_title(f"{result.name}: {result.title}", fontsize=8, loc="left")
        row[0].legend(fontsize=6.5)
        for axes, kind in zip(row[1:], costs(result), strict=False):
            draw_cost(axes, result, kind)
        for axes in row[1 + len(costs(result)) :]:
            axes.remove()
    figure.savefig(picture, dpi=150, format="png")


def costs(result: EvalResult) -> list[str]:
    """Return the kinds of cost that a result knows."""
    known = any(arm["measured"]["flops_share"] is not None for arm in result.data["arms"])
    return (["prefill", "total"] if result.timed else []) + ["flops"] * known


def _has_both(arm: dict[str, Any], kind: str) -> bool:
    return figure_of(arm, ALL)["value"] is not None and cost_of(arm, kind) is not None


def _methods(result: EvalResult) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in result.data["arms"]:
        found.setdefault(arm["method"], []).append(arm)
    return found


def _percents(figure: dict[str, float | None]) -> tuple[float, float, float]:
    value = figure["value"] or 0.0
    low, high = (figure[end] if figure[end] is not None else value for end in ("low", "high"))
    # an interval of percentiles need not hold the figure itself
    return 100 * value, 100 * min(low, value), 100 * max(high, value)  # type: ignore[type-var,operator]


def _style(number: int, method: str) -> dict[str, Any]:
    """Mark, line and colour: each method has another mark or line, the baselines are grey."""
    plain = method in (DENSE, DOWNSAMPLE) or method.split(":")[0] == RANDOM
    line = ":" if plain else LINES[number // len(MARKS) % len(LINES)]
    return {
        "fmt": MARKS[number % len(MARKS)] + line,
        "color": "0.45" if plain else f"C{number % 10}",
        "markersize": 4.5,
        "linewidth": 1,
        "capsize": 2,
        "elinewidth": 0.7,
    }


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7.5)
