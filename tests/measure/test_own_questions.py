"""An evaluation on own data: metrics, scoring, resumption, and what two processes make of it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import tracemalloc

import pytest
import torch

from foveate import FastV
from foveate.measure.eval.batch import Batch, Way
from foveate.measure.eval.data.questions import DataSettings, load_questions
from foveate.measure.eval.evaluate import JOURNAL, EvalSettings, JournalMismatch, evaluate
from foveate.measure.eval.journal import Journal
from foveate.measure.eval.metrics import parse_metrics
from foveate.measure.eval.scoring import after_prompts, answer_words, compare, next_words
from foveate.measure.eval.tables import markdown
from foveate.measure.processes import Processes
from foveate.pruners.spec import parse_methods
from tests.measure.folders import picture
from tests.measure.own_data import rows, write_jsonl
from tests.measure.test_evaluate import without_date


def settings(folder, given=None, **more):
    path = folder / "own.jsonl"
    if given is not None or not path.exists():
        write_jsonl(path, rows(folder, 7) if given is None else given)
    more = {"methods": parse_methods("fastv"), "keeps": (0.25,), "batch_size": 2, "max_new_tokens": 3} | more
    return EvalSettings(**{"data": DataSettings(str(path)), "score_tokens": 2, **more})


def arms(result):
    return {arm["arm"]: arm for arm in result["arms"]}


def test_labelled_questions(loaded, tmp_path):
    result = evaluate(
        loaded, settings(tmp_path, metrics=parse_metrics(["contains,f1", "second=exact"])), tmp_path / "o"
    )
    assert json.loads(json.dumps(result)) == result
    assert list(arms(result)) == ["dense", "downsample @ 0.25", "random:layer=2 @ 0.25", "fastv @ 0.25"]
    assert result["configuration"]["suite"] == "own.jsonl"
    assert result["tasks"] == ["first", "second"]
    found = arms(result)["fastv @ 0.25"]["metrics"]
    assert {name: one["questions"] for name, one in found.items()} == {"contains": 4, "f1": 4, "exact": 3}
    assert set(found["f1"]) == {"questions", "mean", "to_dense", "over_random"}
    assert arms(result)["random:layer=2 @ 0.25"]["metrics"]["f1"]["over_random"] is None
    assert "| fastv | 0.25 |" in markdown(result)
    for row in Journal(tmp_path / "o" / JOURNAL, result["configuration"], 7).arm("fastv @ 0.25"):
        assert row["where"].endswith(f"line {row['index'] + 1}")
        assert row["correct"] == row["scores"]["contains" if row["task"] == "first" else "exact"]


def test_unlabelled_questions_are_compared_with_the_dense_model(loaded, tmp_path):
    given = [{key: value for key, value in row.items() if key != "answer"} for row in rows(tmp_path, 5)]
    result = evaluate(loaded, settings(tmp_path, given), tmp_path / "o")
    found = arms(result)
    assert found["dense"]["metrics"]["kl"]["mean"] == 0
    assert found["dense"]["accuracy"] == found["dense"]["metrics"]["identical"]["mean"] == 1
    assert found["fastv @ 0.25"]["metrics"]["kl"]["mean"] > 0
    journal = Journal(tmp_path / "o" / JOURNAL, result["configuration"], 5)
    for one, dense in zip(journal.arm("fastv @ 0.25"), journal.arm("dense"), strict=True):
        assert one["scores"]["identical"] == (one["answer"] == dense["answer"])


def test_kl_is_what_a_pass_without_any_shortcut_gives(loaded, tmp_path):
    """Next words after the dense answer, one sample at a time and with labels, and the sum by its formula."""
    questions = load_questions(settings(tmp_path).data)
    way, pruner = Way(max_new_tokens=3, score_tokens=2), FastV(keep=0.25, layer=1)
    batch = Batch(loaded, questions[:3], way)
    tokens = [answer.tokens for answer in batch.answer(None)]
    found = [answer.distance for answer in batch.answer(pruner)]
    for one, own, got in zip(questions[:3], tokens, found, strict=True):
        inputs = loaded.inputs([one.question], [[one.image]])
        forced = after_prompts(inputs, torch.tensor([own]), loaded.model.generation_config.eos_token_id)
        dense = next_words(loaded.model, forced)[0].double()
        with pruner(loaded.model):
            pruned = next_words(loaded.model, forced)[0].double()
        kl = sum(float(p.exp() @ (p - q)) for p, q in zip(dense, pruned, strict=True)) / len(own)
        assert got["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert got["kl"] > 0
        assert got["same-tokens"] == (dense.argmax(-1) == pruned.argmax(-1)).double().mean()


def test_words_are_compared_up_to_the_end_of_an_answer():
    dense, other = torch.zeros(1, 3, 4).log_softmax(-1), torch.tensor([[[0.0] * 4, [9.0, 0, 0, 0], [9.0, 0, 0, 0]]])
    (found,) = compare(dense, other.log_softmax(-1), torch.tensor([[True, False, False]]))
    assert found == {"kl": 0.0, "same-tokens": 1.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foveate.measure.eval.scoring.next_words", lambda model, forced: "asked whole")
        model = torch.nn.Linear(1, 1)  # whose forward cannot be asked for the last places alone
        assert answer_words(model, None) == "asked whole"


def test_scoring_generates_nothing_but_the_dense_answer(loaded, tmp_path, monkeypatch):
    given = rows(tmp_path, 4)
    for row in given:
        row |= {"choices": ["red", "blue", "green"], "answer": "blue"}
    generated, generate = [], type(loaded.model).generate
    monkeypatch.setattr(
        type(loaded.model), "generate", lambda self, **inputs: generated.append(1) or generate(self, **inputs)
    )
    result = evaluate(loaded, settings(tmp_path, given, mode="score"), tmp_path / "o")
    assert not generated or len(generated) == 2  # batches
    assert arms(result)["fastv @ 0.25"]["measured"]["visual_tokens_share"] == 0.25
    assert list(arms(result)["fastv @ 0.25"]["metrics"]) == ["choice"]
    journal = Journal(tmp_path / "o" / JOURNAL, result["configuration"], 4)
    assert {row["answer"] for arm in arms(result) for row in journal.arm(arm)} <= {"A", "B", "C"}


def test_a_choice_is_scored_by_its_letter(loaded):
    from foveate.measure.eval.scoring import likeliest_letter

    words = torch.tensor([0.1, 0.2, 0.3, 0.05, 0.35]).log()
    assert likeliest_letter(words, [[0], [1, 4], [2]]) == 1


def test_an_interrupted_run_continues_to_the_same_result(loaded, tmp_path):
    asked = settings(tmp_path, metrics=parse_metrics(["exact,kl"]))
    whole = evaluate(loaded, asked, tmp_path / "whole")

    def stop(what, done, total):
        if done > total / 2 and what == "random:layer=2 @ 0.25":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(loaded, asked, tmp_path / "parts", progress=stop)
    half = (tmp_path / "parts" / JOURNAL).read_bytes()
    (tmp_path / "parts" / JOURNAL).write_bytes(half[:-20])  # killed in the middle of a line
    continued = evaluate(loaded, asked, tmp_path / "parts")
    assert without_date(continued) == without_date(whole)
    assert (tmp_path / "parts" / JOURNAL).read_bytes().startswith(half[: half.rfind(b"\n", 0, -20)])


@pytest.mark.parametrize("change", ["metrics", "mode", "questions"])
def test_another_configuration_is_refused(loaded, tmp_path, change):
    asked = settings(tmp_path, metrics=parse_metrics(["choice"]), given=[
        row | {"choices": ["a", "b"], "answer": "a"} for row in rows(tmp_path, 2)
    ])  # fmt: skip
    evaluate(loaded, asked, tmp_path / "o")
    if change == "questions":
        picture(50).save(tmp_path / "1.png")
    other = {"metrics": {"metrics": parse_metrics(["exact"])}, "mode": {"mode": "score"}, "questions": {}}[change]
    with pytest.raises(JournalMismatch, match=change):
        evaluate(loaded, dataclasses.replace(asked, **other), tmp_path / "o")


def test_a_full_disk_leaves_no_half_of_a_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path / JOURNAL, {"a": 1}, 3)
    journal.add([{"arm": "dense", "index": 0}])
    before = (tmp_path / JOURNAL).read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="space"):
            journal.add([{"arm": "dense", "index": 1}])
    assert (tmp_path / JOURNAL).read_bytes() == before
    journal.add([{"arm": "dense", "index": 2}])
    again = Journal(tmp_path / JOURNAL, {"a": 1}, 3)
    assert not again.missing("dense", [0, 2])
    assert again.missing("dense", [1])


def test_answers_are_on_disk_when_they_are_added(tmp_path):
    """A process that is killed at once has lost nothing."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_add_and_die, args=(tmp_path / JOURNAL,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(Journal(tmp_path / JOURNAL, {"a": 1}, 2).arm("dense")) == [
        {"arm": "dense", "index": 0, "answer": "é"}, {"arm": "dense", "index": 1, "answer": "\ud800"}
    ]  # fmt: skip


def _add_and_die(path):
    journal = Journal(path, {"a": 1}, 2)
    journal.add([{"arm": "dense", "index": at, "answer": text} for at, text in enumerate(["é", "\ud800"])])
    os.kill(os.getpid(), signal.SIGKILL)


class Pretended(Processes):
    """One of several processes, without the others: what they would have said is what this one says."""

    def from_main(self, value):
        return value

    def together(self, value):
        return [value] * self.number


def test_two_processes_give_the_result_of_one(loaded, tmp_path):
    asked = settings(tmp_path, metrics=parse_metrics(["f1,kl"]))
    one = evaluate(loaded, asked, tmp_path / "one")
    assert evaluate(loaded, asked, tmp_path / "two", processes=Pretended(2, 1)) == {}
    parts = {path.name: path.read_text().count("\n") for path in (tmp_path / "two").glob("*.jsonl")}
    assert parts == {"answers-1.jsonl": 1 + 4 * 3}  # the second and the last batch, of two questions and of one
    two = evaluate(loaded, asked, tmp_path / "two", processes=Pretended(2, 0))
    assert two["machine"].pop("processes") == 2
    assert one["machine"].pop("processes") == 1
    assert without_date(two) == without_date(one)
    # a single process continues what two began, and asks nothing again
    again = evaluate(loaded, asked, tmp_path / "two")
    again["machine"].pop("processes")
    assert without_date(again) == without_date(one)
    assert sum(path.read_text().count("\n") for path in (tmp_path / "two").glob("*.jsonl")) == 2 + 4 * 7


def test_memory_does_not_grow_with_the_data(loaded, tmp_path, monkeypatch):
    """Answers, questions and images of a batch are in memory, and of all others where they lie."""
    from foveate.measure.eval.answers import Answer

    monkeypatch.setattr(Batch, "answer", lambda self, *_: [Answer("word " * 200, 4, 16)] * len(self.examples))
    picture(0, 8, 8).save(tmp_path / "0.png")
    row = {"image": "0.png", "question": "what is this ? " * 50, "answer": "word1"}
    peaks = []
    for number in (40, 240):
        asked = settings(tmp_path, [row] * number, batch_size=8)
        tracemalloc.start()
        evaluate(loaded, asked, tmp_path / str(number))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown = (peaks[1] - peaks[0]) / 200
    assert grown < 5_000, grown  # bytes a question: the figures of three arms; an answer alone has 1,000, of four arms


@pytest.mark.slow
def test_two_launched_processes_give_the_result_of_one(llava_folder, tmp_path):
    import socket
    import subprocess

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_jsonl(tmp_path / "own.jsonl", rows(tmp_path, 5))
    words = ["--data", str(tmp_path / "own.jsonl"), "--methods", "fastv", "--keep", "0.25", "--batch-size", "2"]
    words += ["--model", str(llava_folder), "--max-new-tokens", "2", "--metric", "exact,kl", "--device", "cpu"]
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"]
    on_cpu = {"ACCELERATE_USE_CPU": "1"} if torch.accelerator.is_available() else {}
    for folder, start in {"one": [], "two": [*launch, str(port), "-m"]}.items():
        subprocess.run(
            [sys.executable, "-m", *start, "foveate", "eval", *words, "--out", str(tmp_path / folder)],
            env=os.environ | on_cpu | {"OMP_NUM_THREADS": "1"},  # which the launcher sets for two
            check=True,
            timeout=250,
        )
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert (tmp_path / "two" / "answers-1.jsonl").exists()
    assert (one["machine"].pop("processes"), two["machine"].pop("processes")) == (1, 2)
    assert without_date(two) == without_date(one)
