"""Accuracy kept: the dense model beside every method at every budget, on the same questions; it resumes."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from foveate.measure import environment
from foveate.measure.budget import PromptCost, check_budget
from foveate.measure.eval.answers import Answer, batch_inputs
from foveate.measure.eval.arms import DENSE, EvalArm, Evidence, NoEvidenceError, evidence_masks, plan_arms
from foveate.measure.eval.asked import Asked
from foveate.measure.eval.batch import Batch, Mode, Way
from foveate.measure.eval.data.questions import DataSettings, OwnQuestions, Question, load_questions
from foveate.measure.eval.gallery import write_gallery
from foveate.measure.eval.journal import Journal, JournalMismatch
from foveate.measure.eval.latency import clock_of, measure_latency
from foveate.measure.eval.metrics import MetricError, Metrics, check_mode, scores
from foveate.measure.eval.suites import Example, is_correct, load_suite, suite_fingerprint, suite_named, untrained
from foveate.measure.eval.summary import summarise
from foveate.measure.loading import LoadedModel
from foveate.measure.processes import Processes
from foveate.pruners.base import depth_of
from foveate.pruners.spec import MethodSpec

__all__ = ["EvalSettings", "JournalMismatch", "check_settings", "evaluate"]

JOURNAL, RESULT, TABLES, DOWNLOADS = "answers.jsonl", "result.json", "result.md", "downloads"
SEEDS_APART = 100_003  # so that two seeds of an evaluation share no seed of a batch


@dataclass(frozen=True)
class EvalSettings:
    """What is evaluated.

    Parameters
    ----------
    methods
        The methods; `random` and `downsample` are always compared too.
    keeps
        The budgets.
    suites
        Names of the questions; without any, and without `data`, they are those of `scenes`.
    samples
        How many questions of each suite.
    seed
        Of the questions, of every random draw and of the bootstrap.
    layer
        Stage of every method that has one and was given none.
    oracle
        Add the diagnostic that knows where the answer lies.
    budget
        What a budget is: "after", the share kept after the cut (for BTP, whose cuts are several, a mean over the
        layers); or for every method the "mean" share of visual tokens per decoder layer, that in the "kv" cache, or
        that of the "flops" of the first question's prompt.
    batch_size, max_new_tokens
        Of the answers.
    gallery
        How many questions with changed answers are kept with their images, for a report.
    timed
        Rounds in which each arm is timed beside the dense model; 0 times nothing.
    data
        Own questions, alone or after those of the suites.
    metrics
        By which their answers are scored; of tasks without one by the usual one, see `metrics.usual`.
    mode
        "generate" answers, or "score" the next words after the dense model's answer: one pass a batch and arm.
    score_tokens
        First tokens of the dense answer by which next words are compared.
    """

    methods: tuple[MethodSpec, ...]
    keeps: tuple[float | int, ...]
    suites: tuple[str, ...] = ()
    samples: int = 450
    seed: int = 0
    layer: int | None = None
    oracle: bool = False
    budget: Literal["after", "mean", "kv", "flops"] = "after"
    batch_size: int = 16
    max_new_tokens: int = 32
    gallery: int = 0
    timed: int = 0
    data: DataSettings | None = None
    metrics: Metrics = field(default_factory=Metrics)
    mode: Mode = "generate"
    score_tokens: int = 8

    def __post_init__(self) -> None:
        if not self.suites and self.data is None:
            object.__setattr__(self, "suites", ("scenes",))


def check_settings(settings: EvalSettings) -> None:
    """Refuse what no model can be asked, before one is loaded.

    Raises
    ------
    UnknownSuiteError, UnknownMethodError, BudgetError
        A suite, a method, an option or a budget does not exist, or `budget` is none of `BUDGETS`.
    NoEvidenceError
        The oracle is asked for with own data.
    MetricError
        The mode does not exist, or a metric compares texts where none are generated.
    """
    if settings.data is not None and settings.oracle:
        raise NoEvidenceError("the oracle is given the evidence of a suite; own data has none")
    check_mode(settings.mode, settings.metrics, settings.data is not None)
    if settings.mode == "score" and settings.suites:
        raise MetricError("--mode score is for own questions alone: give it without --suite")
    check_budget(settings.budget, settings.keeps)
    for name in settings.suites:
        suite_named(name)
    plan_arms(settings.methods, settings.keeps, settings.layer, settings.oracle)


def evaluate(
    loaded: LoadedModel,
    settings: EvalSettings,
    folder: Path,
    fresh: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    processes: Processes | None = None,
    examples: Sequence[Example] | None = None,
    enough: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Answer every question with every arm and return the result; a run that was stopped continues.

    Parameters
    ----------
    loaded
        The model and its processor.
    settings
        What is compared.
    folder
        Holds the journal of answers.
    fresh
        Start over instead of continuing.
    progress
        Called with what is done (an arm), how many answers of how many, after each batch.
    processes
        They share the batches; the result is that of one. It is made by the main one.
    examples
        The questions, where they are loaded already; a plain sequence is those of the only suite, or of the data.
    enough
        Asked after each batch; once it says so, the result is of the questions that every arm has answered, as if
        there were no others. The same call goes on with the others.

    Returns
    -------
    dict
        Plain data for JSON: settings, versions, machine, and a summary of each arm. Empty in all but the main process.

    Raises
    ------
    JournalMismatch
        The folder holds answers of another configuration.
    DataError
        Own data that cannot be used.
    """
    processes = processes or Processes()
    config = loaded.model.config if settings.budget == "mean" else None
    out_of_reach: list[str] = []
    if settings.budget not in ("kv", "flops"):
        for arm in plan_arms(settings.methods, settings.keeps, settings.layer, settings.oracle, config, []):
            if arm.spec is not None:  # a layer that the model has not is said now, and nothing is written
                arm.pruner().resolved(loaded.model.config).layers(depth_of(loaded.model.config))
    asked = _asked(settings, folder, progress, examples)
    cost = None
    if settings.budget in ("kv", "flops"):
        first = asked[0]
        cost = PromptCost.of_question(loaded, settings.budget, first.question, list(first.images))
    arms = plan_arms(settings.methods, settings.keeps, settings.layer, settings.oracle, config, out_of_reach, cost)
    shared = _configuration(loaded, settings, asked)
    journal = Journal(folder / JOURNAL, shared, len(asked), fresh, processes)
    batches = list(enumerate(asked.batches(settings.batch_size)))[processes.index :: processes.number]
    done, total = 0, len(arms) * sum(len(indices) for _, indices in batches)
    for number, indices in batches:
        todo = [arm for arm in arms if journal.missing(arm.label, indices)]
        done += (len(arms) - len(todo)) * len(indices)
        batch = _batch(loaded, settings, journal, asked, indices) if todo else None
        for arm in todo:
            answers = _answer(loaded, settings, arm, batch, settings.seed * SEEDS_APART + number)
            dense = answers if arm.method == DENSE else journal.arm(DENSE, indices)
            said = [one.text if isinstance(one, Answer) else one["answer"] for one in dense]
            own = zip(batch.examples, answers, said, strict=True)
            journal.add(_row(arm, example, given, one, settings, asked) for example, given, one in own)
            done += len(indices)
            if progress:
                progress(arm.label, done, total)
        if enough is not None and enough():
            break
    processes.together(None)  # all have written
    if not processes.main:
        return {}
    journal.read()
    there = [at for at in range(len(asked)) if not any(journal.missing(arm.label, [at]) for arm in arms)]
    if len(there) < len(asked):
        shared |= {"samples": len(there), "questions": suite_fingerprint([asked[at] for at in there])}
    answered = [(arm, journal.arm(arm.label, there)) for arm in arms]
    if settings.gallery:
        write_gallery(folder, loaded, asked, [(arm.label, rows) for arm, rows in answered], settings.gallery)
    result = {
        "format": "foveate-eval-1",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": environment.command(),
        "configuration": shared,
        "machine": {**environment.machine(loaded.model.device), "processes": processes.number},
        "settings": {
            **asdict(settings),
            "methods": [str(spec) for spec in settings.methods],
            "keeps": list(settings.keeps),
            "suites": list(settings.suites),
            "metrics": settings.metrics.to_dict(),
            "data": None if settings.data is None else settings.data.to_dict(),
        },
        "out_of_reach": out_of_reach,
        "skipped_rows": asked.skipped,
        **summarise(answered, settings.seed),
    }
    result["notes"] += untrained(loaded.name, settings.suites)
    if settings.timed:
        time_arms(result, loaded, settings, arms, asked[: settings.batch_size], progress)
    return result


def load_examples(
    settings: EvalSettings, folder: Path, progress: Callable[[str, int, int], None] | None = None
) -> Asked:
    """Return the questions of the suites, and one's own.

    Parameters
    ----------
    settings
        What is evaluated.
    folder
        Of the evaluation: what is fetched is kept there.
    progress
        Called with what is done, how many and of how many.

    Raises
    ------
    DataError
        Own data that cannot be used.
    """
    own: dict[str, Sequence[Example]] = {}
    if settings.data is not None:  # first: it may be refused
        mode, seed, downloads = settings.mode, settings.seed, folder / DOWNLOADS
        name = settings.data.short_name
        name = f"{name} (data)" if name in settings.suites else name
        own[name] = load_questions(settings.data, settings.metrics, mode, seed, downloads, progress)
    suites = {name: load_suite(name, settings.samples, settings.seed, progress) for name in settings.suites}
    return Asked({**suites, **own})


def _asked(
    settings: EvalSettings,
    folder: Path,
    progress: Callable[[str, int, int], None] | None,
    examples: Sequence[Example] | None,
) -> Asked:
    if examples is None:
        return load_examples(settings, folder, progress)
    if isinstance(examples, Asked):
        return examples
    return Asked({settings.suites[0] if settings.data is None else settings.data.short_name: examples})


def _batch(loaded: LoadedModel, settings: EvalSettings, journal: Journal, asked: Asked, indices: list[int]) -> Batch:
    """The questions of a batch, with the dense answers where they are there already."""
    own = [asked[at] for at in indices]
    scored = settings.score_tokens if _scored(settings, asked, own) else 0
    way = Way(settings.mode, settings.max_new_tokens, scored, settings.gallery > 0)
    dense = None
    if scored and not journal.missing(DENSE, indices):
        dense = [row["tokens"] for row in journal.arm(DENSE, indices)]
    return Batch(loaded, own, way, dense)


def _scored(settings: EvalSettings, asked: Asked, batch: list[Question]) -> bool:
    """Whether next words are compared: a metric of one of the questions needs it."""
    own = asked.own(batch[0].index)
    if own is None or settings.mode == "score":
        return settings.mode == "score"
    return any(settings.metrics.needs(_names(settings, own, one), "logits") for one in batch)


def _names(settings: EvalSettings, examples: OwnQuestions, example: Question) -> tuple[str, ...]:
    """Names of the metrics of a question, the one that decides first."""
    return settings.metrics.of(example.task, examples.labelled, bool(example.choices), settings.mode)


def time_arms(
    result: dict[str, Any],
    loaded: LoadedModel,
    settings: EvalSettings,
    arms: list[EvalArm],
    batch: list[Example],
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Give each arm of a result its `time`: prefill, and the whole answer, of one batch beside the dense model."""
    result["time"] = {
        "rounds": settings.timed,
        "batch_size": len(batch),
        "new_tokens": settings.max_new_tokens,
        "clock": clock_of(loaded.model),
    }
    whole = batch_inputs(loaded, batch)
    for done, (arm, entry) in enumerate(zip(arms, result["arms"], strict=True), 1):
        masks = evidence_masks(batch, _visual_tokens(loaded, batch)) if needs_evidence(arm) else None
        inputs = batch_inputs(loaded, batch, arm.shrink) if arm.shrink != 1 else whole
        pruner = arm.pruner(settings.seed * SEEDS_APART, masks)
        entry["time"] = measure_latency(
            loaded.model, whole, inputs, pruner, settings.max_new_tokens, settings.timed
        ).to_dict()
        if progress:
            progress(f"timing {arm.label}", done, len(arms))


def _configuration(loaded: LoadedModel, settings: EvalSettings, asked: Asked) -> dict[str, Any]:
    """Return what answers must share to stand in one table; arms may be added, this may not change."""
    return {
        "model": loaded.name,
        "model_type": loaded.model.config.model_type,
        "parameters": sum(weight.numel() for weight in loaded.model.parameters()),
        "weights": environment.model_fingerprint(loaded.model),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": loaded.model.device.type,
        "revision": getattr(loaded.model.config, "_commit_hash", None),
        "suite": asked.name,
        "samples": len(asked),
        "seed": settings.seed,
        "questions": asked.fingerprint,
        "batch_size": settings.batch_size,
        "max_new_tokens": settings.max_new_tokens,
        "budget": settings.budget,
        "metrics": settings.metrics.to_dict(),
        "mode": settings.mode,
        "score_tokens": settings.score_tokens,
        "code": environment.code_fingerprint(),
        "versions": environment.versions(),
    }


def _answer(loaded: LoadedModel, settings: EvalSettings, arm: EvalArm, batch: Batch, seed: int) -> list[Answer]:
    masks = evidence_masks(batch.examples, _visual_tokens(loaded, batch.examples)) if needs_evidence(arm) else None
    return batch.answer(arm.pruner(seed, masks), arm.shrink)


def needs_evidence(arm: EvalArm) -> bool:
    """Say whether an arm is the diagnostic that is given the evidence."""
    return arm.spec is not None and arm.spec.name == Evidence.name


def _visual_tokens(loaded: LoadedModel, batch: list[Example]) -> int:
    from foveate.measure.overlay import visual_positions

    ids = loaded.inputs([batch[0].question], [list(batch[0].images)])["input_ids"]
    return visual_positions(loaded.model.config, ids[0]).numel()


def _row(
    arm: EvalArm, example: Example, answer: Answer, dense: str, settings: EvalSettings, asked: Asked
) -> dict[str, Any]:
    told = {"answer" if key == "text" else key: value for key, value in asdict(answer).items()}
    distance = told.pop("distance") or {}
    told = {key: value for key, value in told.items() if value is not None or key not in ("kept_tokens", "tokens")}
    row = {"arm": arm.label, "index": example.index, "task": asked.task(example), "truth": example.answer}
    if len(asked.parts) > 1:
        row["suite"] = asked.suite(example.index)
    own = asked.own(example.index)
    if own is None or not isinstance(example, Question):
        return {**row, "correct": is_correct(answer.text, example.answer), **told}
    names = _names(settings, own, example)
    found = scores(names, answer.text, example.answers, example.choices, dense)
    found |= {name: distance[name] for name in names if name in distance}
    return {**row, "where": example.where, "correct": found[names[0]], "scores": found, **told}
