import dataclasses
import json

import pytest

from foveate.measure.eval import evaluate as module
from foveate.measure.eval.arms import NoEvidenceError
from foveate.measure.eval.evaluate import JOURNAL, EvalSettings, JournalMismatch, evaluate
from foveate.measure.eval.suites import UnknownSuiteError, is_correct, load_suite
from foveate.measure.eval.tables import NOT_PRUNED, OFF_BUDGET, markdown, result_notes, result_tables
from foveate.pruners.spec import parse_methods

pytestmark = pytest.mark.usefixtures("words_suite")
SETTINGS = EvalSettings(
    parse_methods("greedyprune,fastv"), (0.5, 0.25), suites=("words",), samples=5, batch_size=2, max_new_tokens=2
)


@pytest.fixture(scope="module")
def result(loaded, tmp_path_factory):
    from foveate.measure.eval import suites as suite
    from tests.measure.folders import questions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "SUITES", {"words": questions})
        settings = dataclasses.replace(SETTINGS, oracle=True)
        return evaluate(loaded, settings, tmp_path_factory.mktemp("whole"))


def without_date(result):
    return {key: value for key, value in result.items() if key not in ("created", "command")}


def test_an_interrupted_run_continues_to_the_same_result(loaded, tmp_path):
    whole = evaluate(loaded, SETTINGS, tmp_path / "whole")

    def stop(what, done, total):
        if what == "random:layer=2 @ 0.25" and done < total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(loaded, SETTINGS, tmp_path / "parts", progress=stop)
    half = (tmp_path / "parts" / JOURNAL).read_text()
    (tmp_path / "parts" / JOURNAL).write_text(half[:-20])  # killed in the middle of a line, too
    continued = evaluate(loaded, SETTINGS, tmp_path / "parts")
    assert without_date(continued) == without_date(whole)
    assert half.count("\n") < (tmp_path / "whole" / JOURNAL).read_text().count("\n")


def test_a_run_that_has_enough_gives_the_result_of_what_is_answered_and_continues(loaded, tmp_path):
    asked = iter([False, True])
    part = evaluate(loaded, SETTINGS, tmp_path / "parts", enough=lambda: next(asked))
    assert without_date(part) == {
        **without_date(evaluate(loaded, dataclasses.replace(SETTINGS, samples=4), tmp_path / "four")),
        "settings": part["settings"],
    }
    whole = evaluate(loaded, SETTINGS, tmp_path / "whole")
    assert without_date(evaluate(loaded, SETTINGS, tmp_path / "parts")) == without_date(whole)


def test_a_finished_run_asks_nothing_again(loaded, tmp_path, monkeypatch):
    first = evaluate(loaded, SETTINGS, tmp_path)
    monkeypatch.setattr(module, "_answer", lambda *_: pytest.fail("asked again"))
    assert without_date(evaluate(loaded, SETTINGS, tmp_path)) == without_date(first)


def test_arms_may_be_added(loaded, tmp_path):
    evaluate(loaded, SETTINGS, tmp_path)
    more = evaluate(loaded, dataclasses.replace(SETTINGS, keeps=(0.5, 0.75)), tmp_path)
    assert "greedyprune @ 0.75" in [arm["arm"] for arm in more["arms"]]


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples": 4}, {"max_new_tokens": 3}, {"batch_size": 3}])
def test_another_configuration_is_refused(loaded, tmp_path, change):
    evaluate(loaded, SETTINGS, tmp_path)
    with pytest.raises(JournalMismatch, match=next(iter(change))):
        evaluate(loaded, dataclasses.replace(SETTINGS, **change), tmp_path)
    evaluate(loaded, dataclasses.replace(SETTINGS, **change), tmp_path, fresh=True)


def test_a_file_that_is_no_journal_is_left_alone(loaded, tmp_path):
    (tmp_path / JOURNAL).write_text("notes\n")
    with pytest.raises(JournalMismatch, match="not a journal"):
        evaluate(loaded, SETTINGS, tmp_path)
    assert (tmp_path / JOURNAL).read_text() == "notes\n"


def test_what_was_kept_is_measured(result):
    measured = {arm["arm"]: arm["measured"] for arm in result["arms"]}
    assert measured["dense"]["visual_tokens"] == 16
    assert measured["random:layer=2 @ 0.25"]["visual_tokens"] == 4
    assert measured["random:layer=2 @ 0.25"]["kv_share"] == pytest.approx((2 + 4 * 0.25) / 6)
    assert measured["greedyprune @ 0.5"]["visual_tokens_share"] == pytest.approx(0.5)
    # cut before layer 2 of 6: a third of the layers sees everything
    assert measured["greedyprune @ 0.5"]["mean_tokens_per_layer"] == pytest.approx((2 + 4 * 0.5) / 6)
    assert measured["downsample @ 0.25"]["visual_tokens_share"] == 1  # a fixed-size processor scales back up


def test_the_result_says_what_it_takes_to_repeat_it(result):
    assert json.loads(json.dumps(result)) == result
    assert {"weights", "code", "questions", "seed", "versions", "dtype"} <= set(result["configuration"])
    assert {"foveate", "torch", "transformers"} <= set(result["configuration"]["versions"])
    assert result["tasks"] == ["first", "second"]
    for arm in result["arms"]:
        assert arm["questions"] == 5
        assert sum(task["right"] for task in arm["tasks"].values()) == arm["right"]


def test_tables_and_page(result):
    for table in result_tables(result):
        assert all(len(row) == len(table.columns) for row in table.rows)
    page = markdown(result)
    assert "| dense |" in page
    assert "| evidence | 0.5 |" in page
    assert not any(note.startswith((NOT_PRUNED, OFF_BUDGET)) for note in result_notes(result))


def test_an_arm_that_did_not_prune_is_loud(loaded, tmp_path, monkeypatch):
    """Text-only prompts: nothing to prune, and the table must say so."""
    monkeypatch.setattr(type(loaded), "inputs", _without_images(type(loaded).inputs))
    result = evaluate(loaded, dataclasses.replace(SETTINGS, methods=()), tmp_path)
    skipped = {arm["arm"]: arm["skipped"]["questions"] for arm in result["arms"]}
    assert skipped == {
        "dense": 0, "downsample @ 0.5": 0, "downsample @ 0.25": 0, "random @ 0.5": 5, "random @ 0.25": 5
    }  # fmt: skip
    assert any(note.startswith(NOT_PRUNED) for note in result_notes(result))
    assert "not pruned" in result_tables(result)[0].columns


def _without_images(inputs):
    return lambda self, questions, images: inputs(self, questions, [[] for _ in images])


def test_the_oracle_keeps_the_evidence(loaded):
    from foveate.measure.eval.answers import run_batch
    from foveate.measure.eval.arms import Evidence, evidence_masks
    from foveate.measure.overlay import visual_positions

    examples = load_suite("words", 3, 0)
    pruner = Evidence(masks=evidence_masks(examples, 16), keep=0.25, layer=0)
    batch = run_batch(loaded, [one.question for one in examples], [[one.image] for one in examples], pruner)
    (stage,) = batch.report.stages
    for row, kept, example in zip(batch.inputs["input_ids"], stage.kept, examples, strict=True):
        evidence = visual_positions(loaded.model.config, row)[example.evidence]
        assert len(kept) == 4
        assert set(evidence.tolist()) <= set(kept.tolist())


def test_the_oracle_needs_evidence_on_the_models_grid():
    from foveate.measure.eval.arms import evidence_masks

    examples = load_suite("words", 3, 0)
    with pytest.raises(NoEvidenceError):
        evidence_masks(examples, 2)
    with pytest.raises(NoEvidenceError):
        evidence_masks([dataclasses.replace(examples[0], evidence=None)], 16)


def test_unknown_suite():
    with pytest.raises(UnknownSuiteError, match="words"):
        load_suite("nope", 3, 0)


@pytest.mark.parametrize("answer", ["top left", "Top  left.", " top left\n", "TOP LEFT!"])
def test_answers_are_compared_by_what_they_say(answer):
    assert is_correct(answer, "top left")
    assert not is_correct(answer, "top right")
