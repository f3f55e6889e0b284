"""Accuracy kept: the dense model beside every method at every budget, on the same questions; it resumes."""

import datetime
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from foveate.errors import FoveateError
from foveate.measure import environment
from foveate.measure.budget import PromptCost, check_budget
from foveate.measure.eval.answers import Answer, answer_batch
from foveate.measure.eval.arms import EvalArm, Evidence, evidence_masks, plan_arms
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
        layers); or for every method the "mean" share of visual tokens per decoder layer, that in the "kv" cache, or
        that of the "flops" of the first question's prompt.
    batch_size, max_new_tokens
        Of the answers.
    """

    methods: tuple[MethodSpec, ...]
    keeps: tuple[float | int, ...]
    suite: str = "scenes"
    samples: int = 450
    seed: int = 0
    layer: int | None = None
    oracle: bool = False
    budget: Literal["after", "mean", "kv", "flops"] = "after"
    batch_size: int = 16
    max_new_tokens: int = 8


def check_settings(settings: EvalSettings) -> None:
    """Refuse what no model can be asked, before one is loaded.

    Raises
    ------
    UnknownSuiteError, UnknownMethodError, BudgetError
        A suite, a method, an option or a budget does not exist, or `budget` is none of `BUDGETS`.
    """
    check_budget(settings.budget, settings.keeps)
    suite_named(settings.suite)
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
    examples = load_suite(settings.suite, settings.samples, settings.seed, progress)
    cost, first = None, examples[0]
    if settings.budget in ("kv", "flops"):
        cost = PromptCost.of_question(loaded, settings.budget, first.question, [first.image])
    arms = plan_arms(settings.methods, settings.keeps, settings.layer, settings.oracle, config, out_of_reach, cost)
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
    return {
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
        **summarise([(arm, journal.arm(arm.label, order)) for arm in arms], settings.seed),
    }


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
    masks = None
    if arm.spec is not None and arm.spec.name == Evidence.name:
        masks = evidence_masks(batch, _visual_tokens(loaded, batch))
    return answer_batch(loaded, batch, arm.pruner(seed, masks), settings.max_new_tokens, arm.shrink)


def _visual_tokens(loaded: LoadedModel, batch: list[Example]) -> int:
    from foveate.measure.overlay import visual_positions

    ids = loaded.inputs([batch[0].question], [[batch[0].image]])["input_ids"]
    return visual_positions(loaded.model.config, ids[0]).numel()


def _row(arm: EvalArm, example: Example, answer: Answer) -> dict[str, Any]:
    return {
        "arm": arm.label,
        "index": example.index,
        "task": example.task,
        "truth": example.answer,
        "correct": is_correct(answer.text, example.answer),
        **{"answer" if key == "text" else key: value for key, value in asdict(answer).items()},
    }
