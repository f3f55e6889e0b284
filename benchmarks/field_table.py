"""The tables of a run of field.py, out of the answers that it left: `field.md` beside them.

    python benchmarks/field_table.py benchmarks/results/tiny_field

The second table has the methods before the language model from the first run, on the questions of the second: their
mean over the layers is their `keep`, and question, draw and batch are the same in both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from field import KEEPS, LAYER

from foveate.measure.eval.journal import Journal
from foveate.measure.eval.summary import accuracy_gap, accuracy_kept
from foveate.pruners import METHODS
from foveate.tiny.questions import LONG_TASKS, SHORT_TASKS

READING = ("read", "number", "spell")  # what a sign says, letter by letter where the answer is long
GROUPS = {"all": (*SHORT_TASKS, *LONG_TASKS), "short": SHORT_TASKS, "long": LONG_TASKS, "reading": READING}
AT = 0.22  # the budget of the tables that have one
COSTS = (f"FLOPs at {AT:g}, %", f"left behind the last cut at {AT:g}, %")
GREEDY = "greedyprune:layer=2"
HALVES = {
    "attention of the text alone": (
        "greedyprune:objective=threshold,saliency=attention,query=mean_text,threshold=1.0,layer=2"
    ),
    "log-det diversity alone": "greedyprune:floor=1000.0,layer=2",
    "max-min diversity alone": "divprune:layer=2",
    "the reviewed rule": "greedyprune:objective=threshold,layer=2",
    "FastV": "fastv:layer=2",
    "random tokens": "random:layer=2",
}
BTP = "benchmarks/results/btp_calibration_64"
OTHERS = {
    "FastV": "fastv:layer=2",
    "PyramidDrop": "pyramiddrop",
    "DivPrune, before layer 0": "divprune:layer=0",
    "DivPrune, before layer 2": "divprune:layer=2",
    "SparseVLM": "sparsevlm",
    "random tokens, before layer 0": "random",
    "downsampled image": "downsample",
}
NAMES = {
    "downsample": "downsampled image (no token saved)",
    "random": "random tokens",
    "evidence": "evidence first, then random (an oracle)",
    "uniform": "uniform grid",
    "pool": "average pooling",
    BTP: "BTP, calibrated on 64 other questions",
    "btp": "BTP, stages by depth",
    "greedyprune": "GreedyPrune (volume)",
    HALVES["attention of the text alone"].removesuffix(",layer=2"): "GreedyPrune's saliency alone (text attention)",
    "greedyprune:floor=1000.0": "GreedyPrune's diversity alone (log-det)",
    "greedyprune:objective=threshold": "GreedyPrune, the reviewed rule",
    "glimpseprune-tiny": "GlimpsePrune, trained",
}
VIDEO = ("evs", "vidcom2")


@dataclass(frozen=True)
class Run:
    """A result of `foveate eval` with its answers.

    Attributes
    ----------
    result
        What `foveate eval` wrote.
    rows
        Of each arm the answers.
    there
        The questions that every arm has answered.
    """

    result: dict[str, Any]
    rows: dict[str, dict[int, dict[str, Any]]]
    there: list[int]

    @classmethod
    def read(cls, folder: Path) -> Run:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        path = folder / "answers.jsonl"
        with path.open(encoding="utf-8") as file:
            asked = json.loads(file.readline())["configuration"]
        journal, arms = Journal(path, asked, asked["samples"]), [arm["arm"] for arm in result["arms"]]
        there = [at for at in range(asked["samples"]) if not any(journal.missing(arm, [at]) for arm in arms)]
        return cls(result, {arm: dict(zip(there, journal.arm(arm, there), strict=True)) for arm in arms}, there)

    @property
    def seed(self) -> int:
        """Of the bootstrap, so that intervals are those of the result."""
        return int(self.result["bootstrap"]["seed"])

    def arm(self, method: str, keep: float | None) -> dict[str, Any] | None:
        """The arm of a method at a budget, if there is one."""
        found = (arm for arm in self.result["arms"] if (arm["method"], arm["keep"]) == (method, keep))
        return next(found, None)

    def right(
        self, method: str, keep: float | None, group: str = "all", among: Sequence[int] | None = None
    ) -> list[bool]:
        """Which answers to questions of a group of tasks are right, of all or `among` these."""
        arm = self.arm(method, keep)
        rows = {} if arm is None else self.rows[arm["arm"]]
        asked = self.there if among is None else among
        return [rows[at]["correct"] for at in asked if at in rows and rows[at]["task"] in GROUPS[group]]

    def methods(self) -> list[str]:
        """The methods, and a smaller image, in the order of the run."""
        return [name for name in dict.fromkeys(arm["method"] for arm in self.result["arms"]) if name != "dense"]


def figure(value: dict[str, float | None], form: str = ".1f") -> str:
    value, low, high = (100 * (value[key] or 0.0) for key in ("value", "low", "high"))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
    return [*(f"| {line} |" for line in lines), ""]


def name_of(method: str) -> str:
    """What the tables call a method, with its stage where it has one."""
    spec, _, layer = method.partition("layer=")
    spec = spec.rstrip(":,")
    if spec in NAMES:
        name = NAMES[spec]
    else:
        name = METHODS[spec.split(":")[0]].__name__
    place = layer or ("0" if method == "random" else "")
    return f"{name}, before layer {place}" if place else name


def kept(run: Run, method: str, keep: float | None, group: str = "all", among: Sequence[int] | None = None) -> str:
    """Accuracy kept on a group of tasks, with its interval."""
    right, dense = run.right(method, keep, group, among), run.right("dense", 1.0, group, among)
    return figure(accuracy_kept(right, dense, seed=run.seed).to_dict()) if right else "–"


def row_of(run: Run, method: str, among: Sequence[int] | None = None) -> list[str]:
    """A method at every budget, and what it costs at one of them."""
    own = run.arm(method, None)
    cells = [kept(run, method, None if own else keep, among=among) for keep in KEEPS]
    arm = own or run.arm(method, AT)
    return [name_of(method), *cells, *costs(arm)]


def costs(arm: dict[str, Any] | None) -> list[str]:
    """FLOPs, and the visual tokens that are left behind the last cut."""
    measured = {} if arm is None else arm["measured"]
    return [share(measured.get("flops_share")), share(measured.get("visual_tokens_share"))]


def best_first(run: Run, methods: Iterable[str], among: Sequence[int] | None = None) -> list[str]:
    return sorted(methods, key=lambda one: sum(run.right(one, AT, among=among)), reverse=True)


def same_cut(run: Run) -> list[str]:
    """Groups by where they cut, the best first."""
    groups: dict[str, list[str]] = {f"layer={LAYER}": [], "layer=0": [], "downsample": []}
    for method in run.methods():
        place = next((one for one in groups if one in method), "layer=0")
        groups[place].append(method)
    head = ["accuracy kept, % of dense [95 %]", *(f"keep {keep:g}" for keep in KEEPS), *COSTS]
    titles = {
        f"layer={LAYER}": f"### Before layer {LAYER}: what looks into the language model, and its baselines",
        "layer=0": "### Before layer 0, in front of the language model",
        "downsample": "### A smaller image",
    }
    lines = []
    for place, methods in groups.items():
        rows = [row_of(run, method) for method in best_first(run, methods)]
        lines += [titles[place], "", *table(head, rows)]
    return lines


def groups_of_tasks(run: Run) -> list[str]:
    """Accuracy kept on short and long answers and on reading, at one budget."""
    head = [f"accuracy kept at {AT:g}, % of dense [95 %]", *GROUPS, "right answers to reading at 0.05, %"]
    rows = []
    for method in best_first(run, run.methods()):
        last = run.right(method, KEEPS[-1], "reading")
        rows.append([name_of(method), *(kept(run, method, AT, group) for group in GROUPS)])
        rows[-1].append(share(sum(last) / len(last)))
    return table(head, rows)


def same_mean(cut: Run, mean: Run) -> list[str]:
    """All methods at each mean, on the questions of the second run."""
    both = [at for at in mean.there if at in set(cut.there)]
    entries = [(mean, method) for method in mean.methods()]
    before = [one for one in cut.methods() if f"layer={LAYER}" not in one and one not in mean.methods()]
    entries += [(cut, method) for method in before]
    vtw = [f"vtw:keep={keep:g}" for keep in KEEPS]
    rows = []
    for run, method in entries:
        if method in vtw:
            continue
        keep = None if run.arm(method, None) else AT
        rows.append((sum(run.right(method, keep, among=both)), row_of(run, method, both)))
    cells = [kept(mean, one, None, among=both) if mean.arm(one, None) else "–" for one in vtw]
    arm = mean.arm(f"vtw:keep={AT:g}", None)
    rows.append(
        (
            sum(mean.right(f"vtw:keep={AT:g}", None, among=both)),
            ["VTW", *cells, *costs(arm)],
        )
    )
    rows.sort(key=lambda row: -row[0])
    head = ["accuracy kept, % of dense [95 %]", *(f"mean {keep:g}" for keep in KEEPS), *COSTS]
    return table(head, [row for _, row in rows])


def gaps(run: Run, method: str, others: dict[str, tuple[Run, str]], among: Sequence[int] | None = None) -> list[str]:
    """The method's accuracy minus that of others, in points, at each budget."""
    rows = []
    for name, (other, spec) in others.items():
        cells = []
        for keep in KEEPS:
            own, theirs = run.right(method, keep, among=among), other.right(spec, keep, among=among)
            gap = accuracy_gap(own, theirs, seed=run.seed).to_dict() if own and theirs else None
            cells.append("–" if gap is None else figure(gap, "+.1f"))
        rows.append([name, *cells])
    return table(["minus", *(f"{keep:g}" for keep in KEEPS)], rows)


def asked(run: Run) -> str:
    shared = run.result["configuration"]
    dense = run.result["arms"][0]["accuracy"]
    return (
        f"{shared['samples']:,} questions of '{shared['suite']}', seed {shared['seed']}, the tasks in turn; dense "
        f"{100 * dense:.1f} % right. `{run.result['command']}`"
    )


def page(cut: Run, mean: Run) -> str:
    """The whole page."""
    shared, machine = cut.result["configuration"], cut.result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in shared["versions"].items())
    video = ", ".join(METHODS[name].__name__ for name in VIDEO)
    others = {name: (mean if mean.arm(spec, KEEPS[0]) else cut, spec) for name, spec in OTHERS.items()}
    lines = [
        "# All methods on the embedded model",
        "",
        "Made by `field_table.py` from the answers of `field.py`; do not edit. Accuracy kept is the accuracy over the "
        "dense model's on the same questions, in brackets 95 % of a paired bootstrap. Of the layers 0 is the first; a "
        "cut before layer 0 is in front of the language model. FLOPs are those of the language model's prefill, % of "
        "the dense run.",
        "",
        "## At the same cut",
        "",
        asked(cut),
        "",
        *same_cut(cut),
        f"## By kind of answer, at keep {AT:g}",
        "",
        f"Reading is {', '.join(READING)}: what a sign says. Long are {', '.join(LONG_TASKS)}.",
        "",
        *groups_of_tasks(cut),
        f"## GreedyPrune minus its halves and others, before layer {LAYER}",
        "",
        "Points of all questions, paired.",
        "",
        *gaps(cut, GREEDY, {name: (cut, spec) for name, spec in HALVES.items()}),
        "## At the same mean share of visual tokens per layer",
        "",
        asked(mean),
        "",
        "Methods before the language model are those of the first run, on these questions. A dash: it cannot reach "
        "that mean. GlimpsePrune finds its budget itself, and VTW has the layer nearest to the mean.",
        "",
        *same_mean(cut, mean),
        "## BTP, calibrated, minus others at the same mean",
        "",
        "Points of all questions, paired.",
        "",
        *gaps(mean, BTP, others, [at for at in mean.there if at in set(cut.there)]),
        "## Not in the tables",
        "",
        f"* {video}: choose among the frames of a video; images stay whole, and the embedded model sees images alone.",
        *(f"* {line}" for line in mean.result["out_of_reach"]),
        "",
        f"Weights {shared['weights']}, {shared['dtype']}, {machine['device']} ({machine['cpu']}); {versions}; code "
        f"{shared['code']} and {mean.result['configuration']['code']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="OUT of field.py; OUT_mean lies beside it")
    folder = parser.parse_args().folder
    written = page(Run.read(folder), Run.read(folder.with_name(f"{folder.name}_mean")))
    (folder / "field.md").write_text(written, encoding="utf-8")
    print(folder / "field.md")


if __name__ == "__main__":
    main()
