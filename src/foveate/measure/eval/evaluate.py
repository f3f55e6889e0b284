"""Accuracy kept: the dense model beside every method at every budget, on the same questions; it resumes."""

import datetime
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from foveate.errors import BudgetError, FoveateError
from foveate.measure import environment
from foveate.measure.eval.answers import Answer, answer_batch, batch_inputs
from foveate.measure.eval.arms import EvalArm, Evidence, check_keeps, evidence_masks, plan_arms
from foveate.measure.eval.gallery import write_gallery
from foveate.measure.eval.latency import clock_of, measure_latency
from foveate.measure.eval.suites import Example, is_correct, load_suite, suite_fingerprint, suite_named
from foveate.measure.eval.summary import summarise
from foveate.measure.loading import LoadedModel
from foveate.measure.resume import differences
from foveate.pruners.spec import MethodSpec


class JournalMismatch(FoveateError, ValueError):
    """The folder holds answers of another configuration; mixing the two would make a result of neither."""


class Journal:
    """Answers on disk, by arm and question.

    Parameters
    ----------
    path
        A JSONL file: the configuration on the first line, then one line an answer.
    configuration
        What every answer in the file has in common. A file of another configuration is refused.
    fresh
        Throw away what is there.
    """

    def __init__(self, path: Path, configuration: dict[str, Any], fresh: bool = False) -> None:
        self.path = path
        self.rows: dict[tuple[str, int], dict[str, Any]] = {}
        configuration = json.loads(json.dumps(configuration))
        if path.exists() and not fresh:
            self._read(configuration)
        if not self.path.exists() or fresh or not self.path.stat().st_size:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"configuration": configuration}) + "\n", encoding="utf-8")

    def _read(self, configuration: dict[str, Any]) -> None:
        text = self.path.read_text(encoding="utf-8")
        if not text.endswith("\n"):  # stopped in the middle of a line: that answer is asked again
            text = text[: text.rfind("\n") + 1]
            self.path.write_text(text, encoding="utf-8")
        lines = text.splitlines()
        if not lines:
            return
        try:
            earlier = json.loads(lines[0])["configuration"]
            rows = [json.loads(line) for line in lines[1:]]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise JournalMismatch(f"{self.path} is not a journal of foveate eval: give another --out") from error
        was = differences(earlier, configuration)
        if was:
            raise JournalMismatch(
                f"{self.path} was made with another configuration: {was}. Give another --out, or --fresh to start over"
            )
        self.rows = {(row["arm"], row["index"]): row for row in rows}

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append finished answers; they are on disk when this returns."""
        rows = list(rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.rows.update({(row["arm"], row["index"]): row for row in rows})

    def missing(self, arm: str, indices: Iterable[int]) -> bool:
        """Say whether any of these questions has no answer of this arm yet."""
        return any((arm, index) not in self.rows for index in indices)

    def arm(self, arm: str, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Return an arm's answers in the order of `indices`."""
        return [self.rows[arm, index] for index in indices]


JOURNAL, RESULT, TABLES = "answers.jsonl", "result.json", "result.md"
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
    suite
        Name of the questions.
    samples
        How many questions.
    seed
        Of the questions, of every random draw and of the bootstrap.
    layer
        Stage of every method that has one and was given none.
    oracle
        Add the diagnostic that knows where the answer lies.
    budget
        What a budget is: "after", the share kept after the cut (for BTP, whose cuts are several, a mean over the
        layers), or "mean", for every method the mean share of visual tokens per decoder layer.
    batch_size, max_new_tokens
        Of the answers.
    gallery
        How many questions with changed answers are kept with their images, for a report.
    timed
        Rounds in which each arm is timed beside the dense model; 0 times nothing.
    """

    methods: tuple[MethodSpec, ...]
    keeps: tuple[float | int, ...]
    suite: str = "scenes"
    samples: int = 450
    seed: int = 0
    layer: int | None = None
    oracle: bool = False
    budget: Literal["after", "mean"] = "after"
    batch_size: int = 16
    max_new_tokens: int = 8
    gallery: int = 0
    timed: int = 0


def check_settings(settings: EvalSettings) -> None:
    """Refuse what no model can be asked, before one is loaded.

    Raises
    ------
    UnknownSuiteError, UnknownMethodError, BudgetError
        A suite, a method, an option or a budget does not exist, or `budget` is neither "after" nor "mean".
    """
    if settings.budget not in ("after", "mean"):
        raise BudgetError(f"--budget is 'after' or 'mean', got '{settings.budget}'")
    suite_named(settings.suite)
    check_keeps(settings.keeps, settings.budget == "mean")
    plan_arms(settings.methods, settings.keeps, settings.layer, settings.oracle)


def evaluate(
    loaded: LoadedModel,
    settings: EvalSettings,
    folder: Path,
    fresh: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
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
        Called with what is done (an arm), how many questions of how many, after each batch.

    Returns
    -------
    dict
        Plain data for JSON: settings, versions, machine, and a summary of each arm.

    Raises
    ------
    JournalMismatch
        The folder holds answers of another configuration.
    """
    config = loaded.model.config if settings.budget == "mean" else None
    out_of_reach: list[str] = []
    arms = plan_arms(settings.methods, settings.keeps, settings.layer, settings.oracle, config, out_of_reach)
    examples = load_suite(settings.suite, settings.samples, settings.seed, progress)
    shared = _configuration(loaded, settings, examples)
    journal = Journal(folder / JOURNAL, shared, fresh)
    batches = [examples[at : at + settings.batch_size] for at in range(0, len(examples), settings.batch_size)]
    done, total = 0, len(arms) * len(examples)
    for arm in arms:
        for number, batch in enumerate(batches):
            if journal.missing(arm.label, [example.index for example in batch]):
                answers = _answer(loaded, settings, arm, batch, settings.seed * SEEDS_APART + number)
                journal.add(_row(arm, example, given) for example, given in zip(batch, answers, strict=True))
            done += len(batch)
            if progress:
                progress(arm.label, done, total)
    order = [example.index for example in examples]
    answered = [(arm, journal.arm(arm.label, order)) for arm in arms]
    if settings.gallery:
        write_gallery(folder, loaded, examples, [(arm.label, rows) for arm, rows in answered], settings.gallery)
    result = {
        "format": "foveate-eval-1",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": environment.command(),
        "configuration": shared,
        "machine": environment.machine(loaded.model.device),
        "settings": {
            **asdict(settings),
            "methods": [str(spec) for spec in settings.methods],
            "keeps": list(settings.keeps),
        },
        "out_of_reach": out_of_reach,
        **summarise(answered, settings.seed),
    }
    if settings.timed:
        time_arms(result, loaded, settings, arms, examples[: settings.batch_size], progress)
    return result


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


def _configuration(loaded: LoadedModel, settings: EvalSettings, examples: list[Example]) -> dict[str, Any]:
    """Return what answers must share to stand in one table; arms may be added, this may not change."""
    return {
        "model": loaded.name,
        "model_type": loaded.model.config.model_type,
        "parameters": sum(weight.numel() for weight in loaded.model.parameters()),
        "weights": environment.model_fingerprint(loaded.model),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": loaded.model.device.type,
        "suite": settings.suite,
        "samples": len(examples),
        "seed": settings.seed,
        "questions": suite_fingerprint(examples),
        "batch_size": settings.batch_size,
        "max_new_tokens": settings.max_new_tokens,
        "budget": settings.budget,
        "code": environment.code_fingerprint(),
        "versions": environment.versions(),
    }


def _answer(
    loaded: LoadedModel, settings: EvalSettings, arm: EvalArm, batch: list[Example], seed: int
) -> list[Answer]:
    masks = evidence_masks(batch, _visual_tokens(loaded, batch)) if needs_evidence(arm) else None
    which = settings.gallery > 0
    return answer_batch(loaded, batch, arm.pruner(seed, masks), settings.max_new_tokens, arm.shrink, which)


def needs_evidence(arm: EvalArm) -> bool:
    """Say whether an arm is the diagnostic that is given the evidence."""
    return arm.spec is not None and arm.spec.name == Evidence.name


def _visual_tokens(loaded: LoadedModel, batch: list[Example]) -> int:
    from foveate.measure.overlay import visual_positions

    ids = loaded.inputs([batch[0].question], [[batch[0].image]])["input_ids"]
    return visual_positions(loaded.model.config, ids[0]).numel()


def _row(arm: EvalArm, example: Example, answer: Answer) -> dict[str, Any]:
    row = {
        "arm": arm.label,
        "index": example.index,
        "task": example.task,
        "truth": example.answer,
        "correct": is_correct(answer.text, example.answer),
        **{"answer" if key == "text" else key: value for key, value in asdict(answer).items()},
    }
    if answer.kept_tokens is None:
        del row["kept_tokens"]
    return row
