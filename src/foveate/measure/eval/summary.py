"""From answers to figures: accuracy, accuracy kept with a paired bootstrap, and the budget that was really spent."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.measure.eval.arms import DOWNSAMPLE, RANDOM, EvalArm, stage

SHARES = ("mean_tokens_per_layer", "kv_share", "flops_share")
FIGURES = ("suite", "task", "correct", "kept", "visual", "skipped", *SHARES)
Rows = list[dict[str, Any]]
DOWNSAMPLE_NOTE = (
    "downsample gives the processor an image with that share of the pixels. Where visual tokens stay at 100 %, the "
    "processor scaled it back up: the same information budget, no token saved."
)


def summarise(answered: Sequence[tuple[EvalArm, Sequence[dict[str, Any]]]], seed: int) -> dict[str, Any]:
    """Return the summary of all arms, the dense one first.

    Parameters
    ----------
    answered
        Answers of each arm, all to the same questions in the same order; those of several suites say which, and each
        has its own figures then.
    seed
        Of the bootstrap.
    """
    dense = _figures(answered[0][1])
    random = {_place(arm): rows for arm, rows in answered if _is_random(arm)}
    tasks, suites = (list(dict.fromkeys(row[key] for row in dense if key in row)) for key in ("task", "suite"))
    arms = []
    for arm, rows in answered:
        drawn = random.get(_place(arm))  # read again for each arm: the figures of all budgets would add up
        drawn = None if drawn is None else _figures(drawn)
        arms.append(_arm(arm, _figures(rows), dense, drawn, tasks, suites, seed))
    return {
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": seed, "paired": True},
        "tasks": tasks,
        "suites": suites,
        "arms": arms,
        "notes": [DOWNSAMPLE_NOTE] if any(arm.method == DOWNSAMPLE for arm, _ in answered) else [],
    }


def _figures(rows: Iterable[dict[str, Any]]) -> Rows:
    """Rows without their texts, one arm's at a time: the texts of all may be too many for the memory."""
    return [{name: row[name] for name in (*FIGURES, "scores") if name in row} for row in rows]


def _place(arm: EvalArm) -> tuple[int | None, float]:
    """Stage and budget: what a fair comparison shares."""
    return (None if arm.spec is None else stage(arm.spec)), arm.keep


def _arm(
    arm: EvalArm, rows: Rows, dense: Rows, random: Rows | None, tasks: list[str], suites: list[str], seed: int
) -> dict[str, Any]:
    skipped = Counter(row["skipped"] for row in rows if row["skipped"])
    return {
        "arm": arm.label,
        "method": arm.method,
        "keep": None if arm.own_budget else arm.keep,
        "layer": _place(arm)[0],
        "keep_is_mean": arm.means_layers,
        "pruner": None if arm.spec is None else repr(arm.pruner()),
        "measured": _measured(arm, rows, dense),
        "skipped": {"questions": sum(skipped.values()), "reasons": dict(skipped)},
        **_accuracy(rows, dense, seed),
        "over_random": None if random is None or _is_random(arm) else _gap(rows, random, seed),
        "metrics": _metrics(arm, rows, dense, random, seed),
        "tasks": {name: _accuracy(*_only("task", name, rows, dense), seed) for name in tasks},
        "suites": {name: _accuracy(*_only("suite", name, rows, dense), seed) for name in suites},
    }


def _measured(arm: EvalArm, rows: Rows, dense: Rows) -> dict[str, float | None]:
    share = _ratio(sum(row["kept"] for row in rows), sum(row["visual"] for row in dense))
    measured = {"visual_tokens": _mean([row["kept"] for row in rows]), "visual_tokens_share": share}
    measured |= {name: _mean([row[name] for row in rows]) for name in SHARES}
    if arm.method == DOWNSAMPLE and share != 1:  # fewer tokens in every layer from the start; nobody counted the FLOPs
        measured |= {"mean_tokens_per_layer": share, "kv_share": share, "flops_share": None}
    return measured


def _accuracy(rows: Rows, dense: Rows, seed: int) -> dict[str, Any]:
    right, reference = [row["correct"] for row in rows], [row["correct"] for row in dense]
    return {
        "questions": len(right),
        "right": sum(right),
        "accuracy": sum(right) / len(right),
        "accuracy_kept": accuracy_kept(right, reference, seed=seed).to_dict(),
        "to_dense": accuracy_gap(right, reference, seed=seed).to_dict(),
    }


def _metrics(arm: EvalArm, rows: Rows, dense: Rows, random: Rows | None, seed: int) -> dict[str, Any]:
    """Each metric over the questions that have it: its mean, and the paired differences to dense and to random."""
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row.get("scores", ())):
        which = [at for at, row in enumerate(rows) if name in row.get("scores", ())]
        own, reference = ([one[at]["scores"][name] for at in which] for one in (rows, dense))
        same = random is None or _is_random(arm)
        other = None if same or random is None else [random[at]["scores"][name] for at in which]
        found[name] = {
            "questions": len(which),
            "mean": sum(own) / len(own),
            "to_dense": accuracy_gap(own, reference, seed=seed).to_dict(),
            "over_random": None if other is None else accuracy_gap(own, other, seed=seed).to_dict(),
        }
    return found


def _is_random(arm: EvalArm) -> bool:
    return arm.spec is not None and arm.spec.name == RANDOM


def _gap(rows: Rows, other: Rows, seed: int) -> dict[str, float | None]:
    return accuracy_gap([row["correct"] for row in rows], [row["correct"] for row in other], seed=seed).to_dict()


def _only(key: str, name: str, *arms: Rows) -> list[Rows]:
    return [[row for row in rows if row[key] == name] for rows in arms]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else 1.0


LEVEL = 0.95
RESAMPLES = 2000
AT_ONCE = 2**16  # draws in memory


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap interval; `None` where the figure is undefined (a share of nothing)."""

    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return plain data for JSON."""
        return asdict(self)


def _resampled(columns: Sequence[ArrayLike], resamples: int, seed: int) -> NDArray[np.float64]:
    """Sums of each column in each resample, (R, columns); some at a time, so that memory is the same for any data."""
    values = np.stack([np.asarray(column, dtype=np.float64) for column in columns], -1)
    rng, questions = np.random.default_rng(seed), len(values)
    share, step = np.full(questions, 1.0 / questions), max(1, AT_ONCE // questions)
    pieces = (min(step, resamples - done) for done in range(0, resamples, step))
    return np.concatenate([rng.multinomial(questions, share, size=size) @ values for size in pieces])


def _percentiles(draws: NDArray[np.float64]) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def accuracy_kept(method: ArrayLike, dense: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the accuracy of an arm as a share of the dense model's, with its paired bootstrap interval.

    Parameters
    ----------
    method, dense
        (n,) from 0 to 1. How right each was on which question, in the same order.
    resamples, seed
        How often the questions are drawn anew, and the seed of that: the same draws for every arm.
    """
    right, reference = _paired(method, dense)
    if right.size == 0 or reference.sum() == 0:
        return Interval(None, None, None)
    top, bottom = _resampled([right, reference], resamples, seed).T
    low, high = _percentiles(top[bottom > 0] / bottom[bottom > 0])
    return Interval(float(right.sum() / reference.sum()), low, high)


def accuracy_gap(method: ArrayLike, other: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the accuracy of one arm minus another's, in shares of the questions, with its paired interval.

    Parameters
    ----------
    method, other
        (n,) from 0 to 1. How right each was on which question, in the same order.
    resamples, seed
        See `accuracy_kept`.
    """
    right, reference = _paired(method, other)
    if right.size == 0:
        return Interval(None, None, None)
    gap = right - reference
    low, high = _percentiles(_resampled([gap], resamples, seed)[:, 0] / gap.size)
    return Interval(float(gap.mean()), low, high)


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1:
        raise ValueError(f"paired arms need the same questions, got shapes {left.shape} and {right.shape}")
    return left, right
