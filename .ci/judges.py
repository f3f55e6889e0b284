"""Tables of docs/fair-judge.md: published comparisons of the first embedded model beside those of the present one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
EVEN = "btp:stages=((0,1,0),(3,0.5,0.33),(6,0.25,0.67),(9,0.125,1))"
CALIBRATED = "benchmarks/results/btp_calibration_64"
SHRUNK = "downsampled image (no token saved)"
SHRUNK_PLUS = "image downsampled to 6% (no token saved)"
OWN = "GlimpsePrune+ (RL on pruned context, own predictor)"


class Row(NamedTuple):
    """A method by its name on the page and in the results of either model; "" where it has none."""

    name: str
    first: str
    present: str


class Comparison(NamedTuple):
    """One published comparison: head of its first column, results of either model (more than one where arms came
    later), budget and rows; of GlimpsePrune+, which of the two suites of its result."""

    head: str
    first: str
    present: tuple[str, ...]
    keep: float
    rows: tuple[Row, ...]
    suite: str = ""


def _same(name: str, method: str) -> Row:
    return Row(name, method, method)


GREEDY = tuple(
    Comparison(
        f"GreedyPrune, keep {keep}, before layer 2",
        "first_methods",
        ("tiny_field",),
        keep,
        (
            Row("GreedyPrune, the reviewed rule", "greedyprune:layer=2", "greedyprune:objective=threshold,layer=2"),
            Row("GreedyPrune, volume (default since)", "", "greedyprune:layer=2"),
            _same("diversity alone (DivPrune)", "divprune:layer=2"),
            _same("FastV", "fastv:layer=2"),
            _same("Random", "random:layer=2"),
            _same("oracle: evidence first, then random", "evidence:layer=2"),
            _same(SHRUNK, "downsample"),
        ),
    )
    for keep in (0.5, 0.22, 0.11)
)
BTP = Comparison(
    "BTP, a mean of 22 % per layer",
    "first_btp",
    ("tiny_btp",),
    0.22,
    (
        _same("BTP, calibrated", CALIBRATED),
        _same("BTP, even stages before 0, 3, 6, 9", EVEN),
        _same("BTP, default stages by depth", "btp"),
        _same("DivPrune, before layer 0", "divprune:layer=0"),
        _same("FastV, before layer 2", "fastv:layer=2"),
        _same("Random, before layer 0", "random"),
        _same("Random, before layer 2", "random:layer=2"),
        _same(SHRUNK, "downsample"),
    ),
)
PARTS = Comparison(
    "BTP's parts, a mean of 22 % per layer",
    "first_btp_ablation",
    ("tiny_btp_ablation",),
    0.22,
    (
        _same("as calibrated", CALIBRATED),
        _same("without the spatial seed", f"{CALIBRATED}:spatial_seed=False"),
        _same("without rebalancing", f"{CALIBRATED}:rebalance=False"),
        _same("without both", f"{CALIBRATED}:spatial_seed=False,rebalance=False"),
        _same("query: mean of the text", f"{CALIBRATED}:query=mean_text"),
        _same("heads averaged before the softmax", f"{CALIBRATED}:score=logits"),
        _same("λ: 0 at all stages (no attention)", f"{CALIBRATED}:attention=0.0"),
        Row(
            "λ: 1 at all stages but the first",
            "btp:stages=((0,0.575163,0,1.2,0.5,0.25),(1,0.402614,1),(3,0.28183,1),(6,0.06902,1))",
            "btp:stages=((0,0.358209,0,1.2,0.5,0.25),(2,0.250746,1),(6,0.175522,1),(11,0.042985,1))",
        ),
        _same("last stage: all dropped before layer 11", f"{CALIBRATED}:final=auto,harmless=11"),
        _same("last stage: all dropped before layer 8", f"{CALIBRATED}:final=auto,harmless=8"),
        _same("Random, before layer 0", "random"),
    ),
)
GLIMPSE = Comparison(
    "GlimpsePrune, cut before layer 8 (first) and 10 (fair)",
    "first_glimpse",
    ("tiny_glimpse", "tiny_glimpse_standin"),
    0.074,
    (
        _same("GlimpsePrune, no cap", "glimpseprune-tiny"),
        _same("GlimpsePrune, at most 11.1 %", "glimpseprune-tiny:max_keep=0.111"),
        Row(
            "its stand-in without training, at most 11.1 %",
            "glimpseprune:max_keep=0.111",
            "glimpseprune:max_keep=0.111,layer=10",
        ),
        _same("PyramidDrop", "pyramiddrop"),
        Row("FastV, before the same layer", "fastv:layer=8", "fastv:layer=10"),
        Row("Random, before the same layer", "random:layer=8", "random:layer=10"),
        Row("oracle: evidence first, before the same layer", "evidence:layer=8", "evidence:layer=10"),
        _same("FastV, before layer 2", "fastv:layer=2"),
        _same("Random, before layer 2", "random:layer=2"),
        _same(SHRUNK, "downsample"),
    ),
)
PLUS = tuple(
    Comparison(
        f"GlimpsePrune+, {suite}, of the dense base",
        "first_glimpse_plus",
        ("tiny_glimpse_plus",),
        0.06,
        (
            _same("GlimpsePrune+: RL on pruned context, own predictor", OWN),
            _same("GlimpsePrune+, at most 11.1 %", "GlimpsePrune+, at most 11.1 %"),
            _same("its control: RL without pruning, dense", "RL without pruning, dense"),
            _same("the control with GlimpsePrune+'s predictor", "RL without pruning, with GlimpsePrune+'s predictor"),
            _same("RL on pruned context, dense", "RL on pruned context, dense"),
            _same("GlimpsePrune+'s model, Random, 6 %", "GlimpsePrune+'s model, Random, 6%"),
            _same("base, GlimpsePrune (trained on plain scenes)", "base, GlimpsePrune (trained on plain scenes)"),
            _same("base, Random, 6 %", "base, Random, 6%"),
            _same(f"GlimpsePrune+'s model, {SHRUNK}", f"GlimpsePrune+'s model, {SHRUNK_PLUS}"),
            _same(f"base, {SHRUNK}", f"base, {SHRUNK_PLUS}"),
        ),
        suite,
    )
    for suite in ("scenes-hard", "scenes")
)
LADDER = Comparison(
    "GlimpsePrune's parts, at most 11.1 %, cut before layer 8 (first) and 10 (fair)",
    "first_glimpse_ladder",
    ("tiny_glimpse_ladder",),
    0.111,
    (
        _same("first token's attention, no training", "first token's attention, no training"),
        _same("+ glimpse token, answer loss", "glimpse, answer loss"),
        _same("+ localisation loss", "+ localisation loss"),
        _same("+ predictor, attention alone", "+ predictor"),
        _same("+ vision condition", "+ vision condition"),
        Row("Random, before the same layer", "random:layer=8", "random:layer=10"),
        _same(SHRUNK, "downsample"),
    ),
)
CUTS = Comparison(
    "All of GlimpsePrune's parts, cut before layer, of 12",
    "first_glimpse_ladder",
    ("tiny_glimpse_ladder",),
    0.111,
    (
        _same("4", "before layer 4"),
        _same("6", "before layer 6"),
        Row("8", "+ vision condition", "before layer 8"),
        Row("10", "before layer 10", "+ vision condition"),
    ),
)


def comparisons() -> Iterator[str]:
    """The tables, in the order of the page."""
    for comparison in (GREEDY[1], BTP, GLIMPSE, PARTS, GREEDY[0], GREEDY[2], *PLUS, LADDER, CUTS):
        yield table(comparison)


def table(comparison: Comparison) -> str:
    """Accuracy kept under either judge; what lost most stands first."""
    first, present = read(comparison.first, comparison), {}
    for name in reversed(comparison.present):
        present |= read(name, comparison)
    rows = []
    for row in comparison.rows:
        before, now = (found[name] if name else None for found, name in ((first, row.first), (present, row.present)))
        change = now["value"] - before["value"] if before and now else 0.0
        rows.append((change, f"| {row.name} | {written(before)} | {written(now)} |\n"))
    rows.sort(key=lambda row: row[0])
    head = f"| {comparison.head} | first judge: kept, % [95 %] | fair judge: kept, % [95 %] |\n|---|---|---|\n"
    return head + "".join(line for _, line in rows)


def read(name: str, comparison: Comparison) -> dict[str, dict[str, float]]:
    """Accuracy kept by method, or by variant where the result names them, of one result, at one budget."""
    result = json.loads((RESULTS / name / "result.json").read_text(encoding="utf-8"))
    if comparison.suite:
        arms = result["suites"][comparison.suite]["arms"]
        return {arm: found["of_dense_base"] for arm, found in arms.items()}
    variants = result.get("variants", {})
    return {
        variants.get(arm["method"], arm["method"]): arm["accuracy_kept"]
        for arm in result["arms"]
        if arm["keep"] in (comparison.keep, None)
    }


def written(kept: dict[str, float] | None) -> str:
    """As the result pages write it."""
    if kept is None:
        return "–"
    value, low, high = (f"{100 * kept[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
