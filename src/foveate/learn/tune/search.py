"""Successive halving over settings: many on few questions, the better half on more, the last few on all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.errors import FoveateError
from foveate.pruners.spec import MethodSpec

RUNGS = 4  # each with twice the questions of the one before
FINALISTS = 4  # settings that are asked every question, at least
QUICK = 2  # timed rounds of each setting at the outset


class TuneError(FoveateError, ValueError):
    """A goal that means nothing, or nothing to search."""


@dataclass(frozen=True)
class Goal:
    """What is wanted: what must hold, and then the fastest, or without `max_loss` the one that loses least.

    Parameters
    ----------
    max_loss
        Largest loss of accuracy against the dense model, as a share of the questions, that its upper bound may reach.
    min_speedup
        Smallest dense time over own time, that its lower quartile may reach.
    max_kv
        Largest share of the visual tokens in the KV cache.
    speed
        The time that counts: of the whole answer, or of the prefill.
    confidence
        Of the upper bound, one-sided.

    Raises
    ------
    TuneError
        Nothing is wanted, or a value is out of range.
    """

    max_loss: float | None = None
    min_speedup: float | None = None
    max_kv: float | None = None
    speed: Literal["total", "prefill"] = "total"
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.max_loss is None and self.min_speedup is None and self.max_kv is None:
            raise TuneError("give a goal: --max-loss, --min-speedup or --max-kv")
        if self.max_loss is not None and not 0 < self.max_loss < 1:
            raise TuneError(f"--max-loss is a share over 0 and under 1, such as 1% or 0.01, got {self.max_loss:g}")
        if self.min_speedup is not None and not self.min_speedup >= 1:
            raise TuneError(f"--min-speedup is a factor of at least 1, got {self.min_speedup:g}")
        if self.max_kv is not None and not 0 < self.max_kv <= 1:
            raise TuneError(f"--max-kv is a share over 0 and at most 1, got {self.max_kv:g}")
        if self.speed not in ("total", "prefill"):
            raise TuneError(f"--speed is 'total' or 'prefill', got '{self.speed}'")
        if not 0.5 <= self.confidence < 1:
            raise TuneError(f"--confidence is at least 0.5 and under 1, got {self.confidence:g}")

    @property
    def slowest(self) -> float | None:
        """How many times as fast as dense it must be at least; `None` where only the KV cache is wanted smaller."""
        if self.min_speedup is None and self.max_kv is not None:
            return None
        return self.min_speedup or 1.0


@dataclass(frozen=True)
class Candidate:
    """One setting.

    Parameters
    ----------
    spec
        Method and options.
    keep
        Budget; `None` where the options or a saved pruner bring it.
    """

    spec: MethodSpec
    keep: float | int | None = None

    @property
    def label(self) -> str:
        """Name of the setting."""
        return str(self.spec) if self.keep is None else f"{self.spec} @ {self.keep}"


@dataclass(frozen=True)
class Speed:
    """Dense time over own time, round by round: over 1 is faster.

    Parameters
    ----------
    prefill, total
        `median`, `q25` and `q75`.
    """

    prefill: dict[str, float]
    total: dict[str, float]


class Measurement(Protocol):
    """What the search asks of a model; each call may raise a `FoveateError`, and the setting is then left out."""

    def time(self, candidate: Candidate, rounds: int) -> Speed:
        """Time a setting beside the dense model."""

    def losses(self, candidate: Candidate, first: int, last: int) -> tuple[NDArray[np.float64], float]:
        """Return dense score minus own of the questions from `first` to before `last`, and the KV cache's share."""


@dataclass
class Trial:
    """What is known of a setting.

    Parameters
    ----------
    candidate
        The setting.
    speed
        Its time.
    losses
        (n,) dense score minus own, of the questions that it was asked.
    kv_share
        Visual tokens in its KV cache, as a share.
    out
        Why it is no longer searched; `None` while it is.
    """

    candidate: Candidate
    speed: Speed | None = None
    losses: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    kv_share: float | None = None
    out: str | None = None

    def factor(self, goal: Goal, part: str = "median") -> float:
        """Return how many times faster than dense it is, by the clock that counts."""
        found: float = getattr(self.speed, goal.speed)[part] if self.speed else 1.0
        return found

    def to_dict(self, goal: Goal, tests: int) -> dict[str, Any]:
        """Return plain data for JSON."""
        asked = len(self.losses)
        return {
            "setting": self.candidate.label,
            "method": str(self.candidate.spec),
            "keep": self.candidate.keep,
            "questions": asked,
            "loss": float(self.losses.mean()) if asked else None,
            "loss_at_most": upper_bound(self.losses, goal.confidence, tests) if asked else None,
            "lost": int((self.losses > 0).sum()),
            "gained": int((self.losses < 0).sum()),
            "kv_share": self.kv_share,
            "speed": None if self.speed is None else asdict(self.speed),
            "out": self.out,
        }


def bound_of(losses: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean loss and its standard error, with two imagined questions more: one lost, one gained.

    So that no loss seen on a few questions is not taken for none at all: the adjusted interval for paired proportions
    of Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data", 2012.

    Parameters
    ----------
    losses
        (n,) from -1 to 1.
    """
    more = np.concatenate([losses, [1.0, -1.0]])
    return float(more.mean()), float(more.std() / math.sqrt(len(more)))


def upper_bound(losses: NDArray[np.float64], confidence: float, tests: int = 1) -> float:
    """Return the upper confidence bound of the mean loss.

    Parameters
    ----------
    losses
        (n,) paired, dense minus own.
    confidence
        One-sided, that none of the bounds is under its true loss.
    tests
        How many settings are tested on the same questions (Bonferroni).
    """
    mean, error = bound_of(losses)
    return mean + _z(confidence, tests) * error


def least_questions(max_loss: float, confidence: float, tests: int) -> int:
    """Return how many questions it takes for the bound to be under `max_loss` where nothing is lost."""
    return max(1, math.ceil(_z(confidence, tests) * math.sqrt(2) / max_loss) - 2)


def _z(confidence: float, tests: int) -> float:
    return NormalDist().inv_cdf(1 - (1 - confidence) / max(tests, 1))


@dataclass(frozen=True)
class Found:
    """What the search found.

    Parameters
    ----------
    trials
        All settings, those that got farthest first.
    finalists
        Those that were asked every question.
    winner
        The best of them that reaches the goal; `None`: stay dense.
    why
        Where there is no winner, why.
    """

    trials: list[Trial]
    finalists: list[Trial]
    winner: Trial | None
    why: str | None


Progress = Callable[[str, int, int], None]
Moves = Callable[[Sequence[Trial]], Sequence[Candidate]]


def rungs(questions: int, step: int = 1) -> list[int]:
    """Return how many questions are asked by the end of each rung: an eighth, a quarter, half, all; whole batches."""
    sizes = [-(-questions // 2**power // step) * step for power in reversed(range(RUNGS))]
    return list(dict.fromkeys(min(max(size, step), questions) for size in sizes))


def search(
    candidates: Sequence[Candidate],
    measurement: Measurement,
    goal: Goal,
    questions: int,
    batch: int = 1,
    rounds: int = 7,
    moves: Moves | None = None,
    progress: Progress | None = None,
) -> Found:
    """Find the setting that reaches a goal.

    1. Every setting is timed; those that are no faster than dense, or not fast enough, are out.
    2. On each rung, the settings that are left are asked more questions, and the better half stays: with `max_loss`
       by the logarithm of the speed-up times the probability that the loss is within the bound, else by the loss.
    3. Those that are left at the end were asked everything. They are timed once more, and of those whose bounds reach
       the goal the fastest, or without `max_loss` the one that loses least, is the winner.

    Parameters
    ----------
    candidates
        The settings.
    measurement
        How they are measured.
    goal
        What is wanted.
    questions
        How many there are.
    batch
        Questions that are asked at once.
    rounds
        Timed rounds of the last settings.
    moves
        Given the settings that are left after the first rung, the best first; settings that it makes of them join.
    progress
        Called with what is done, how many steps and of how many.

    Raises
    ------
    TuneError
        There is no setting or no question.
    """
    if not candidates or questions < 1:
        raise TuneError("there is nothing to search: no setting, or no question")
    trials = [Trial(candidate) for candidate in candidates]
    work = _Work(measurement, goal, progress)
    # 1. time
    for done, trial in enumerate(trials, 1):
        work.time(trial, QUICK)
        work.tell("timing", done, len(trials))
    # 2. rungs
    for number, asked in enumerate(sizes := rungs(questions, batch)):
        left = [trial for trial in trials if trial.out is None]
        work.ask(left, asked, f"{asked} questions")
        left = work.ranked([trial for trial in left if trial.out is None])
        if number == 0 and moves is not None and left:
            more = [Trial(candidate) for candidate in moves(left)]
            for trial in more:
                work.time(trial, QUICK)
            work.ask([trial for trial in more if trial.out is None], asked, "settings made of the best")
            trials += more
            left = work.ranked([trial for trial in trials if trial.out is None])
        if asked < sizes[-1]:
            stay = max(FINALISTS, -(-len(left) // 2))
            for trial in left[stay:]:
                trial.out = f"not among the better half after {asked} questions"
    # 3. the last ones
    finalists = [trial for trial in trials if trial.out is None]
    for done, trial in enumerate(finalists, 1):
        work.time(trial, rounds)
        work.tell("timing the last ones", done, len(finalists))
    finalists = work.ranked([trial for trial in finalists if trial.out is None])
    winner = next((trial for trial in work.best_first(finalists) if work.reaches(trial, len(finalists))), None)
    rest = sorted((t for t in trials if t not in finalists), key=lambda trial: -len(trial.losses))
    why = None if winner is not None else work.why_none(trials, finalists, questions)
    return Found([*finalists, *rest], finalists, winner, why)


@dataclass
class _Work:
    measurement: Measurement
    goal: Goal
    progress: Progress | None

    def tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)

    def time(self, trial: Trial, rounds: int) -> None:
        """Time a setting; out with it where even its upper quartile is too slow."""
        try:
            trial.speed = self.measurement.time(trial.candidate, rounds)
        except FoveateError as error:
            trial.out = f"cannot be measured: {' '.join(str(error).split())}"
            return
        wanted = self.goal.slowest
        if wanted is not None and trial.factor(self.goal, "q75") <= wanted:
            trial.out = f"too slow: {trial.factor(self.goal):.2f} times as fast as dense"

    def ask(self, trials: Sequence[Trial], asked: int, what: str) -> None:
        """Ask each setting the questions up to `asked`."""
        for done, trial in enumerate(trials, 1):
            try:
                new, trial.kv_share = self.measurement.losses(trial.candidate, len(trial.losses), asked)
            except FoveateError as error:
                trial.out = f"cannot be measured: {' '.join(str(error).split())}"
                continue
            trial.losses = np.concatenate([trial.losses, new])
            if self.goal.max_kv is not None and trial.kv_share > self.goal.max_kv:
                trial.out = f"too much in the KV cache: {100 * trial.kv_share:.1f} %"
            self.tell(what, done, len(trials))

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """The better ones first."""
        return sorted(trials, key=self._worth, reverse=True)

    def _worth(self, trial: Trial) -> tuple[float, float]:
        mean, error = bound_of(trial.losses)
        faster = math.log(max(trial.factor(self.goal), 1e-9))
        if self.goal.max_loss is None:
            return -mean, faster
        return faster * NormalDist(mean, error).cdf(self.goal.max_loss), -mean

    def best_first(self, trials: Sequence[Trial]) -> list[Trial]:
        if self.goal.max_loss is None:
            return self.ranked(trials)
        return sorted(trials, key=lambda trial: trial.factor(self.goal), reverse=True)

    def reaches(self, trial: Trial, tests: int) -> bool:
        """Whether the bounds of a setting reach the goal."""
        goal, slow = self.goal, trial.factor(self.goal, "q25")
        if goal.max_loss is not None and upper_bound(trial.losses, goal.confidence, tests) > goal.max_loss:
            return False
        return goal.slowest is None or (slow >= goal.slowest and slow > 1)

    def why_none(self, trials: Sequence[Trial], finalists: Sequence[Trial], questions: int) -> str:
        """Say why no setting reaches the goal."""
        if not finalists:
            reasons = list(dict.fromkeys((trial.out or "").partition(":")[0] for trial in trials))
            return f"no setting was left to be asked everything ({'; '.join(reasons)})"
        goal, tests = self.goal, len(finalists)
        if goal.max_loss is None:
            return "none of the last settings is fast enough in three quarters of its rounds"
        least = min(upper_bound(trial.losses, goal.confidence, tests) for trial in finalists)
        if least <= goal.max_loss:
            return "those that lose little enough are not fast enough in three quarters of their rounds"
        needed = least_questions(goal.max_loss, goal.confidence, tests)
        few = ""
        if needed > questions:
            few = (
                f"; to show a loss of at most {100 * goal.max_loss:g} % takes {needed} questions even if none is lost"
            )
        return (
            f"the smallest loss that can be vouched for on {questions} questions is {100 * least:.1f} %, and at most "
            f"{100 * goal.max_loss:g} % is wanted{few}"
        )


def pareto(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """Return the settings that no other one beats both in speed and in loss, the fastest first."""
    best, found = math.inf, []
    for trial in sorted(trials, key=lambda one: (-one.factor(goal), float(one.losses.mean()))):
        loss = float(trial.losses.mean())
        if loss < best:
            best = loss
            found.append(trial)
    return found
