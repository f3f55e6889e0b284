"""The search's measurements on a model: answers that are kept in a journal, times, and BTP's calibration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import FoveateError
from foveate.learn.btp.calibrate import CalibrationSettings, calibrate_btp
from foveate.learn.btp.samples import Sample, Samples
from foveate.learn.tune.search import Candidate, Progress, Speed, Trial, TuneError
from foveate.measure.eval.answers import answer_batch, batch_inputs
from foveate.measure.eval.arms import DENSE, DOWNSAMPLE, RANDOM, EvalArm, stage
from foveate.measure.eval.evaluate import SEEDS_APART
from foveate.measure.eval.journal import Journal
from foveate.measure.eval.latency import measure_latency
from foveate.measure.eval.suites import Example, suite_fingerprint
from foveate.measure.loading import LoadedModel
from foveate.pruners.base import depth_of
from foveate.pruners.spec import MethodSpec, build, has_option, method_class

BTP = "btp"
Score = Callable[[str, Any, str], float]


class NotPrunedError(FoveateError):
    """A setting that leaves every visual token where it is on this model."""


class ModelMeasurement:
    """What `search` asks, answered by a model.

    Parameters
    ----------
    loaded
        The model and its processor.
    examples
        The questions.
    score
        `(answer, question, dense answer) -> how right it is`, from 0 to 1.
    journal
        Of the answers, so that a run that was stopped continues.
    batch_size, max_new_tokens
        Of the answers; the times are those of the first batch.
    seed
        Of random draws.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        examples: Sequence[Example],
        score: Score,
        journal: Journal,
        batch_size: int,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self.loaded, self.examples, self.score, self.journal = loaded, examples, score, journal
        self.batch_size, self.max_new_tokens, self.seed = batch_size, max_new_tokens, seed
        self._timed: Any = None

    def time(self, candidate: Candidate, rounds: int) -> Speed:
        """Time a setting beside the dense model."""
        return self.time_arm(arm_of(candidate), rounds)

    def time_arm(self, arm: EvalArm, rounds: int) -> Speed:
        """Time an arm beside the dense model, on the first batch."""
        first = self.examples[: self.batch_size]
        if self._timed is None:
            self._timed = batch_inputs(self.loaded, first)
        inputs = self._timed if arm.shrink == 1 else batch_inputs(self.loaded, first, arm.shrink)
        pruner = arm.pruner(self.seed * SEEDS_APART)
        found = measure_latency(self.loaded.model, self._timed, inputs, pruner, self.max_new_tokens, rounds)
        return Speed(found.prefill_faster, found.total_faster)

    def losses(self, candidate: Candidate, first: int, last: int) -> tuple[NDArray[np.float64], float]:
        """Return dense score minus own, and the share of the KV cache."""
        return self.arm_losses(arm_of(candidate), first, last)

    def arm_losses(self, arm: EvalArm, first: int, last: int) -> tuple[NDArray[np.float64], float]:
        """The same of an arm."""
        dense = self._rows(EvalArm(DENSE), first, last)
        own = self._rows(arm, first, last)
        skipped = next((row["skipped"] for row in own if row["skipped"]), None)
        if skipped:
            raise NotPrunedError(f"not pruned: {skipped}")
        losses = np.array([old["score"] - new["score"] for old, new in zip(dense, own, strict=True)])
        return losses, float(np.mean([row["kv_share"] for row in own]))

    def _rows(self, arm: EvalArm, first: int, last: int) -> Sequence[dict[str, Any]]:
        for start in range(first, last, self.batch_size):
            places = range(start, min(start + self.batch_size, last))
            if not self.journal.missing(arm.label, places):
                continue
            batch = self.examples[places.start : places.stop]
            pruner = arm.pruner(self.seed * SEEDS_APART + start // self.batch_size)
            answers = answer_batch(self.loaded, batch, pruner, self.max_new_tokens, arm.shrink)
            dense = [answer.text for answer in answers]
            if arm.method != DENSE:
                dense = [row["answer"] for row in self._rows(EvalArm(DENSE), places.start, places.stop)]
            self.journal.add(
                {
                    "arm": arm.label,
                    "index": place,
                    "task": example.task,
                    "answer": answer.text,
                    "score": self.score(answer.text, example, old),
                    "kv_share": answer.kv_share,
                    "skipped": answer.skipped,
                }
                for place, example, answer, old in zip(places, batch, answers, dense, strict=True)
            )
        return self.journal.arm(arm.label, range(first, last))


def arm_of(candidate: Candidate) -> EvalArm:
    """Return the arm of an evaluation that a setting is."""
    if candidate.keep is None:
        return EvalArm(str(candidate.spec), 1.0, candidate.spec, own_budget=True)
    return EvalArm(str(candidate.spec), candidate.keep, candidate.spec)


def make_candidates(
    methods: Sequence[MethodSpec], keeps: Sequence[float | int], layers: Sequence[int] | None, config: Any
) -> tuple[list[Candidate], list[str]]:
    """Return the settings to search, and what is left out, with why.

    Parameters
    ----------
    methods
        Methods; one with a stage in its options keeps it.
    keeps
        Budgets, for all methods that take one.
    layers
        Stages, for all methods that have one cut; `None`: their own, and before a quarter and half of the layers.
    config
        The model's.

    Raises
    ------
    TuneError
        A method's options have a budget of their own, or nothing is left.
    """
    found: dict[str, Candidate] = {}
    out: list[str] = []
    depth = depth_of(config)
    for spec, own in itertools.chain.from_iterable(_placed(spec, layers, depth) for spec in methods):
        for candidate in _budgets(spec, keeps):
            try:
                arm_of(candidate).pruner().resolved(config).layers(depth)
            except FoveateError as error:
                if own:
                    out.append(f"{candidate.label}: {' '.join(str(error).split())}")
                continue
            found.setdefault(candidate.label, candidate)
    if not found:
        raise TuneError(f"no setting can be made: {'; '.join(out)}")
    return list(found.values()), out


def _placed(spec: MethodSpec, layers: Sequence[int] | None, depth: int) -> Iterator[tuple[MethodSpec, bool]]:
    """A method at each stage, and whether that stage was asked for."""
    own = stage(spec)
    if "layer" in spec.options or not has_option(method_class(spec.name), "layer"):
        yield spec, True
        return
    if layers is None:
        yield spec, True
    for layer in (depth // 4, depth // 2) if layers is None else layers:
        if layers is not None or layer != own:
            yield MethodSpec(spec.name, {"layer": layer, **spec.options}), layers is not None


def _budgets(spec: MethodSpec, keeps: Sequence[float | int]) -> Iterator[Candidate]:
    method = method_class(spec.name)
    if "keep" in spec.options:
        raise TuneError(f"'{spec}': budgets are given by --keep, for every method the same")
    if method.finds_budget or method.brings_budget(spec.options) or not has_option(method, "keep"):
        yield Candidate(spec)
    else:
        yield from (Candidate(spec, keep) for keep in keeps)


class Calibration:
    """A move of the search: BTP's stages fitted to the model, at the budget at which BTP's own do best.

    Parameters
    ----------
    loaded
        The model.
    examples
        Questions; nobody looks at their answers.
    name
        Of these questions.
    folder
        Where the calibrated pruner is saved.
    batch_size
        Samples in one forward pass.
    progress
        Called with what is done, how many samples and of how many.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        examples: Sequence[Example],
        name: str,
        folder: Path,
        batch_size: int,
        progress: Progress | None = None,
    ) -> None:
        self.loaded, self.examples, self.name, self.folder = loaded, examples, name, folder
        self.batch_size, self.progress = batch_size, progress

    def __call__(self, left: Sequence[Trial]) -> list[Candidate]:
        """Calibrate at the budget of the best BTP that is left; none is left, or none can be reached: nothing."""
        best = next((one.candidate for one in left if str(one.candidate.spec) == BTP), None)
        if best is None or not isinstance(best.keep, float) or best.keep >= 1 or len(self.examples) < 2:
            return []
        items = tuple(Sample(one.question, one.image) for one in self.examples)
        samples = Samples(items, self.name, suite_fingerprint(list(self.examples)))
        place = self.folder / f"btp-{best.keep:g}"
        settings = CalibrationSettings(keep=best.keep, batch_size=self.batch_size)
        try:
            calibrate_btp(self.loaded, samples, settings, place, progress=self.progress)
        except FoveateError:  # no schedule of this model reaches the budget: BTP's own stages are still there
            return []
        return [Candidate(MethodSpec(str(place)))]


def controls(candidate: Candidate, config: Any) -> list[EvalArm]:
    """Return what any method should beat: random tokens at the setting's stage and budget, and a smaller image."""
    pruner = arm_of(candidate).pruner()
    cuts = pruner.resolved(config).layers(depth_of(config))
    keep = candidate.keep if candidate.keep is not None else getattr(pruner, "keep", None)
    if keep is None:
        return []
    at = {"layer": cuts[0]} if len(cuts) == 1 else {}
    mean = config if method_class(candidate.spec.name).keep_is_mean and isinstance(keep, float) else None
    random = MethodSpec(RANDOM, at)
    return [EvalArm(str(random), keep, random, config=mean), EvalArm(DOWNSAMPLE, keep)]


def save_winner(candidate: Candidate, folder: Path) -> Any:
    """Save a setting for `foveate.load`, and return it."""
    options = {} if candidate.keep is None else {"keep": candidate.keep}
    pruner = build(candidate.spec.name, {**candidate.spec.options, **options})
    pruner.save_pretrained(folder)
    return pruner
