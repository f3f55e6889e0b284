"""Several suites, and own data beside them, in one evaluation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from foveate.cli import app as commands
from foveate.measure.eval import suites as module
from foveate.measure.eval.asked import Asked
from foveate.measure.eval.data.questions import DataSettings, load_questions
from foveate.measure.eval.evaluate import JOURNAL, EvalSettings, check_settings, evaluate
from foveate.measure.eval.journal import Journal
from foveate.measure.eval.metrics import MetricError, parse_metrics
from foveate.measure.eval.suites import UnknownSuiteError, parse_suites
from foveate.measure.eval.tables import result_tables
from foveate.pruners.spec import parse_methods
from tests.measure.folders import questions
from tests.measure.own_data import rows, write_jsonl
from tests.measure.test_evaluate import without_date


@pytest.fixture(autouse=True)
def two_suites(monkeypatch):
    monkeypatch.setattr(module, "SUITES", {"words": questions, "others": lambda n, seed: questions(n, seed + 1)})


@pytest.fixture
def settings(tmp_path):
    path = write_jsonl(tmp_path / "own.jsonl", rows(tmp_path, 5))
    return EvalSettings(
        parse_methods("fastv"),
        (0.25,),
        suites=("words", "others"),
        data=DataSettings(str(path)),
        samples=3,
        batch_size=2,
        max_new_tokens=2,
        metrics=parse_metrics(["contains,f1", "second=exact"]),
        gallery=4,
    )


def test_one_result_with_rows_by_suite_and_task(loaded, settings, tmp_path):
    result = evaluate(loaded, settings, tmp_path / "o")
    names = ["words", "others", "own.jsonl"]
    assert result["configuration"]["suite"] == "words, others, own.jsonl"
    assert (result["configuration"]["samples"], result["suites"]) == (11, names)
    assert result["tasks"] == [f"{name}: {task}" for name in names for task in ("first", "second")]
    arm = result["arms"][-1]
    assert {name: one["questions"] for name, one in arm["suites"].items()} == {"words": 3, "others": 3, "own.jsonl": 5}
    assert sum(one["right"] for one in arm["suites"].values()) == arm["right"]
    assert {name: one["questions"] for name, one in arm["metrics"].items()} == {"contains": 3, "f1": 3, "exact": 2}
    (table,) = [one for one in result_tables(result) if one.title == "Accuracy by suite, %"]
    assert table.columns == ["method", "keep", *(c for name in names for c in (name, f"{name} kept [95 %]"))]


def test_each_part_is_answered_as_alone(loaded, settings, tmp_path):
    evaluate(loaded, settings, tmp_path / "o")
    together = _rows(tmp_path / "o" / JOURNAL)
    start = 0
    for name in ("words", "others", "own.jsonl"):
        own = name == "own.jsonl"
        only = {"suites": ()} if own else {"suites": (name,), "data": None, "metrics": parse_metrics([])}
        evaluate(loaded, dataclasses.replace(settings, **only), tmp_path / f"{name} alone")
        alone = _rows(tmp_path / f"{name} alone" / JOURNAL)
        label = [row for row in together if row["suite"] == name and row["arm"] == "fastv @ 0.25"]
        for one, other in zip(label, [row for row in alone if row["arm"] == "fastv @ 0.25"], strict=True):
            assert one["index"] == other["index"] + start
            assert one["task"] == f"{name}: {other['task']}"
            assert {k: v for k, v in one.items() if k not in ("index", "task", "suite")} == {
                k: v for k, v in other.items() if k not in ("index", "task")
            }
        start += len(label)


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def test_it_resumes(loaded, settings, tmp_path):
    whole = evaluate(loaded, settings, tmp_path / "whole")

    def stop(what, done, total):
        if what == "fastv @ 0.25":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(loaded, settings, tmp_path / "parts", progress=stop)
    assert without_date(evaluate(loaded, settings, tmp_path / "parts")) == without_date(whole)
    assert len(Journal(tmp_path / "parts" / JOURNAL, whole["configuration"], 11).arm("fastv @ 0.25")) == 11


def test_batches_are_of_one_part_each(settings):
    asked = Asked({"words": questions(3, 0), "own": load_questions(settings.data)})
    found = asked.batches(2)
    assert sorted(at for batch in found for at in batch) == list(range(8))
    assert all(len({asked.suite(at) for at in batch}) == 1 for batch in found)
    assert [asked[at].index for at in range(8)] == list(range(8))
    assert asked[-1].index == 7
    assert [one.index for one in asked[2:4]] == [2, 3]
    with pytest.raises(IndexError):
        asked[8]
    assert asked.fingerprint != Asked({"words": questions(3, 1), "own": load_questions(settings.data)}).fingerprint


def test_own_data_with_the_name_of_a_suite(loaded, settings, tmp_path):
    path = write_jsonl(tmp_path / "words", rows(tmp_path, 5)).rename(tmp_path / "words.jsonl")
    same = dataclasses.replace(settings, suites=("words",), data=DataSettings(str(path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataSettings, "short_name", "words")
        assert evaluate(loaded, same, tmp_path / "o")["suites"] == ["words", "words (data)"]


def test_what_does_not_go_together(settings):
    assert parse_suites("words, others") == ("words", "others")
    assert EvalSettings((), ()).suites == ("scenes",)
    assert EvalSettings((), (), data=settings.data).suites == ()
    with pytest.raises(UnknownSuiteError, match="twice"):
        parse_suites("words,words")
    with pytest.raises(UnknownSuiteError, match="there are words, others"):
        parse_suites("words,scenes")
    with pytest.raises(MetricError, match="own questions alone"):
        check_settings(dataclasses.replace(settings, mode="score", metrics=parse_metrics([])))


def test_the_command_takes_suites_and_own_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jsonl").write_text(json.dumps({"image": "a.png", "question": "what?", "answer": "red"}))
    Image.new("RGB", (64, 64), "red").save("a.png")
    given = ["eval", "--suite", "words", "--data", "own.jsonl", "--samples", "1", "--methods", "random"]
    ran = CliRunner().invoke(commands, [*given, "--keep", "0.5", "--out", "out", "--device", "cpu"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(Path("out/result.json").read_text())["suites"] == ["words", "own.jsonl"]


def test_tuning_takes_one_or_the_other(tmp_path):
    given = ["tune", "--suite", "words", "--data", "own.jsonl", "--max-loss", "5%", "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(commands, given)
    assert ran.exit_code == 2
    assert "--suite goes without --data" in ran.output
