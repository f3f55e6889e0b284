"""Figures of a calibration and of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_calibration(result: dict[str, Any], picture: Path) -> bool:
    """Draw the curve with the stages, and the scan of the drop; without matplotlib nothing is drawn, and False given.

    Parameters
    ----------
    result
        As in calibration.json.
    picture
        PNG.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 7 if result["harmless"] else 3.5), layout="constrained")
    upper, *lower = figure.subplots(2 if result["harmless"] else 1, 1, sharex=True, squeeze=False)[:, 0]
    curve = result["curve"]
    layers = range(result["depth"])
    turned = [100 * share for share in curve["turned"][f"{curve['tau']:g}"]]
    upper.bar([layer + 0.5 for layer in layers], turned, width=0.9, color="0.8", label="turned by the layer")
    upper.set(
        title=f"visual tokens whose cosine between before and after the layer is under {curve['tau']:g}",
        ylabel="% of the visual tokens",
        xlim=(-0.2, result["depth"] + 0.1),
    )
    kept = [100.0]
    for stage in result["chosen"]["stages"]:
        kept += [kept[-1], 100 * stage["keep"]]
    edges = [0, *(layer for stage in result["chosen"]["stages"] for layer in [stage["layer"]] * 2), result["depth"]]
    tokens = upper.twinx()
    tokens.plot(edges, [*kept, kept[-1]], color="tab:blue", label="kept")
    tokens.set(ylabel="% of the visual tokens kept", ylim=(0, 103))
    tokens.yaxis.label.set_color("tab:blue")
    for number, layer in enumerate(result["rule"]["layers"]):
        upper.axvline(layer, color="0.4", linestyle=":", label=None if number else "rule's layers")
    for number, stage in enumerate(result["chosen"]["stages"]):
        label = None if number else "chosen stages"
        upper.axvline(stage["layer"], color="tab:red", linewidth=1, label=label)
        name = f"λ {stage['attention']:.2g}" if stage["keep"] else "drop"
        upper.annotate(name, (stage["layer"], 0.98), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    upper.legend(fontsize=8, loc="center right")
    if result["harmless"]:
        _draw_drops(result, lower[0])
    figure.savefig(picture, dpi=110)
    return True


def _draw_drops(result: dict[str, Any], lower: Any) -> None:
    """What dropping everything before each layer does."""
    drops = result["harmless"]["drop_before"]
    shown = [max(value, 1e-6) for value in drops["kl"]]
    lower.plot(drops["layer"], shown, marker=".", label="KL(dense || all dropped)")
    lower.axhline(result["harmless"]["tolerance"], color="0.5", linestyle="--", label="tolerance")
    lower.axvline(result["reading"], color="tab:red", linestyle=":", label=f"reading depth, layer {result['reading']}")
    harmless = result["harmless"]["layer"]
    if harmless is not None:
        lower.axvline(harmless, color="tab:green", label=f"harmless from layer {harmless} on")
    lower.set(title="every visual token dropped before one layer", yscale="log", xlabel="decoder layer", ylabel="nats")
    changed = lower.twinx()
    changed.plot(drops["layer"], [100 * (1 - same) for same in drops["same"]], color="tab:orange", linewidth=1)
    changed.set(ylabel="% of answer tokens changed", ylim=(0, None))
    changed.yaxis.label.set_color("tab:orange")
    lower.legend(fontsize=8)


def draw_training(result: dict[str, Any], picture: Path) -> bool:
    """Draw losses and held-out figures over the updates; without matplotlib nothing is drawn, and False given.

    Parameters
    ----------
    result
        As in training.json.
    picture
        PNG.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name, title in (("answer_loss", "answer"), ("dice", "Dice"), ("bce", "BCE")):
        points = [(row["step"], row[name]) for row in result["history"] if name in row]
        if points:
            upper.plot(*zip(*points, strict=True), label=title)
    upper.set(ylabel="loss", ylim=(0, None), title="training")
    if upper.lines:
        upper.legend()
    checks = result["checks"]
    for name, title in (("recall", "evidence tokens kept"), ("accuracy", "accuracy"), ("kept", "visual tokens kept")):
        if checks:
            known = [row for row in checks if row[name] is not None]
            lower.plot([row["step"] for row in known], [100 * row[name] for row in known], marker=".", label=title)
    cap = result["configuration"]["max_keep"]
    lower.set(
        xlabel="updates", ylabel="%", ylim=(0, 103), title="held out" + (f", at most {cap:.1%} kept" if cap else "")
    )
    if lower.lines:
        lower.legend()
    figure.savefig(picture, dpi=110)
    return True
