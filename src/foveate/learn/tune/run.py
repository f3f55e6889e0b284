"""A search on a model from its settings to its result."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError
from foveate.learn.tune.measure import (
    Calibration,
    ModelMeasurement,
    Score,
    controls,
    make_candidates,
    save_winner,
)
from foveate.learn.tune.search import Goal, Progress, Trial, pareto, rungs, search
from foveate.measure import environment
from foveate.measure.eval.data.questions import DataSettings, Question, load_questions
from foveate.measure.eval.evaluate import DOWNLOADS, JOURNAL
from foveate.measure.eval.journal import Journal
from foveate.measure.eval.latency import clock_of
from foveate.measure.eval.metrics import METRICS, MetricError, Metrics, scores
from foveate.measure.eval.suites import Example, is_correct, load_suite, suite_fingerprint
from foveate.measure.loading import LoadedModel
from foveate.measure.resume import write_whole
from foveate.measure.tables import Cells, percent
from foveate.pruners.spec import MethodSpec

RESULT = "tune.json"
CALIBRATION_SEED = 1000  # added to that of a suite's questions: BTP is calibrated on others


@dataclass(frozen=True)
class TuneSettings:
    """What is searched.

    Parameters
    ----------
    goal
        What is wanted.
    methods, keeps, layers
        The settings, see `make_candidates`.
    batch_size, max_new_tokens
        Of the answers, and of the times.
    rounds
        Timed rounds of the last settings.
    seed
        Of random draws.
    """

    goal: Goal
    methods: tuple[MethodSpec, ...]
    keeps: tuple[float | int, ...]
    layers: tuple[int, ...] | None = None
    batch_size: int = 8
    max_new_tokens: int = 8
    rounds: int = 7
    seed: int = 0


@dataclass(frozen=True)
class Questions:
    """What is asked.

    Parameters
    ----------
    examples
        The questions.
    name, fingerprint
        Of the suite, or of the data, and a short hash of it.
    score
        `(answer, question, dense answer) -> how right it is`, from 0 to 1.
    calibration
        Questions for BTP's calibration; none switches that move off.
    """

    examples: Sequence[Example]
    name: str
    fingerprint: str
    score: Score
    calibration: Sequence[Example] = ()


def suite_questions(name: str, samples: int, seed: int, calibrate: int, progress: Progress | None = None) -> Questions:
    """Return the questions of a suite, and others of it for the calibration.

    Raises
    ------
    UnknownSuiteError
        No suite of this name.
    """
    examples = load_suite(name, samples, seed, progress)
    others = load_suite(name, calibrate, seed + CALIBRATION_SEED, progress) if calibrate else []
    fingerprint = suite_fingerprint(examples)
    return Questions(examples, name, fingerprint, lambda text, one, _: float(is_correct(text, one.answer)), others)


def own_questions(
    settings: DataSettings, metrics: Metrics, seed: int, folder: Path, calibrate: int, progress: Progress | None = None
) -> Questions:
    """Return one's own questions, scored by the first metric of each; the first ones are those of the calibration.

    Raises
    ------
    DataError
        Data that cannot be used.
    MetricError
        A metric that decides and does not compare texts.
    """
    for names in metrics.by_task.values():
        if METRICS[names[0]].score is None:
            raise MetricError(f"the metric that decides must compare texts, and '{names[0]}' does not")
    examples = load_questions(settings, metrics, seed=seed, downloads=folder / DOWNLOADS, progress=progress)

    def score(text: str, one: Question, dense: str) -> float:
        names = metrics.of(one.task, examples.labelled, bool(one.choices), "generate")
        return scores(names[:1], text, one.answers, one.choices, dense)[names[0]]

    return Questions(examples, settings.short_name, examples.fingerprint, score, examples[:calibrate])


def tune(
    loaded: LoadedModel,
    questions: Questions,
    settings: TuneSettings,
    folder: Path,
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Search, save the winner to the folder for `foveate.load`, and return the result, plain data for JSON.

    Parameters
    ----------
    loaded
        The model and its processor.
    questions
        What is asked.
    settings
        What is searched.
    folder
        Holds the answers, so that a run that was stopped continues, the result, and the winner in `winner`.
    fresh
        Start over instead of continuing.
    progress
        Called with what is done, how many and of how many.

    Raises
    ------
    TuneError
        There is nothing to search.
    JournalMismatch
        The folder holds answers of another configuration.
    """
    model, goal = loaded.model, settings.goal
    candidates, left_out = make_candidates(settings.methods, settings.keeps, settings.layers, model.config)
    shared = _configuration(loaded, questions, settings)
    journal = Journal(folder / JOURNAL, shared, len(questions.examples), fresh)
    number, batch = len(questions.examples), settings.batch_size
    measurement = ModelMeasurement(
        loaded, questions.examples, questions.score, journal, batch, settings.max_new_tokens, settings.seed
    )
    move = Calibration(loaded, questions.calibration, questions.name, folder, batch, progress)
    found = search(candidates, measurement, goal, number, batch, settings.rounds, move, progress)
    tests = len(found.finalists)
    result = {
        "format": "foveate-tune-1",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": environment.command(),
        "configuration": shared,
        "machine": environment.machine(model.device),
        "clock": clock_of(model),
        "goal": asdict(goal),
        "rungs": rungs(number, batch),
        "settings": len(candidates),
        "left_out": left_out,
        "trials": [trial.to_dict(goal, tests) for trial in found.trials],
        "front": [trial.candidate.label for trial in pareto(found.finalists, goal)],
        "winner": None,
        "why": found.why,
        "controls": [],
    }
    best = found.winner or (found.finalists[0] if found.finalists else None)
    if best is not None:
        result["controls"] = _controls(measurement, best, goal, number, settings.rounds)
    if found.winner is not None:
        pruner = save_winner(found.winner.candidate, folder / "winner")
        result["winner"] = {"setting": found.winner.candidate.label, "pruner": repr(pruner), "folder": "winner"}
    write_whole(folder / RESULT, result, indent=2)
    return result


def _controls(
    measurement: ModelMeasurement, best: Trial, goal: Goal, questions: int, rounds: int
) -> list[dict[str, Any]]:
    """Random tokens and a smaller image at the budget of a setting."""
    found = []
    for arm in controls(best.candidate, measurement.loaded.model.config):
        try:
            losses, kv_share = measurement.arm_losses(arm, 0, questions)
            speed = measurement.time_arm(arm, rounds)
        except FoveateError:  # it cannot be had on this model; the search has not asked for it
            continue
        trial = Trial(best.candidate, speed, losses, kv_share)
        found.append({**trial.to_dict(goal, 1), "setting": arm.label, "method": arm.method, "keep": arm.keep})
    return found


def _configuration(loaded: LoadedModel, questions: Questions, settings: TuneSettings) -> dict[str, Any]:
    """What the answers of a folder must share; methods, budgets and goals may change."""
    return {
        "model": loaded.name,
        "model_type": loaded.model.config.model_type,
        "weights": environment.model_fingerprint(loaded.model),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": loaded.model.device.type,
        "questions_of": questions.name,
        "samples": len(questions.examples),
        "questions": questions.fingerprint,
        **{name: getattr(settings, name) for name in ("seed", "batch_size", "max_new_tokens")},
        "code": environment.code_fingerprint(),
        "versions": environment.versions(),
    }


def result_table(result: dict[str, Any]) -> Cells:
    """Return the settings that were asked every question, the front marked, and the controls."""
    asked = result["rungs"][-1]
    rows = [one for one in result["trials"] if one["questions"] == asked and one["out"] is None]
    title = (
        f"{result['configuration']['model']} on {asked} questions of '{result['configuration']['questions_of']}': "
        "loss in points of accuracy, times as fast as dense"
    )
    heads = ["setting", "", "loss", "at most", "lost", "gained", "prefill ×", "total ×", "KV, %"]
    lines = [_line(one, "front" if one["setting"] in result["front"] else "") for one in rows]
    return Cells(title, heads, [*lines, *(_line(one, "control") for one in result["controls"])])


def _line(one: dict[str, Any], mark: str) -> list[str]:
    points = [f"{100 * one[name]:+.1f}" for name in ("loss", "loss_at_most")]
    speeds = [f"{one['speed'][part]['median']:.2f}" for part in ("prefill", "total")]
    share = percent(one["kv_share"]).removesuffix(" %")
    return [one["setting"], mark, *points, str(one["lost"]), str(one["gained"]), *speeds, share]
