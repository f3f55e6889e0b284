"""What an evaluation keeps for a report: questions with changed answers, and times."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

from foveate.measure.eval.answers import token_bits, token_list
from foveate.measure.eval.evaluate import JOURNAL, EvalSettings, evaluate
from foveate.measure.eval.gallery import ENTRIES, GALLERY, changed
from foveate.measure.eval.suites import load_suite
from foveate.pruners.spec import parse_methods
from tests.measure.folders import VISUAL

pytestmark = pytest.mark.usefixtures("words_suite")
SETTINGS = EvalSettings(
    parse_methods("fastv:layer=1"),
    (0.5,),
    suites=("words",),
    samples=5,
    batch_size=2,
    max_new_tokens=2,
    gallery=4,
    timed=2,
)


@pytest.fixture(scope="module")
def made(loaded, tmp_path_factory):
    from foveate.measure.eval import suites as suite
    from tests.measure.folders import questions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "SUITES", {"words": questions})
        folder = tmp_path_factory.mktemp("gallery")
        return folder, evaluate(loaded, dataclasses.replace(SETTINGS, oracle=True), folder)


def test_kept_tokens_are_those_of_the_run(loaded, made):
    """Each entry's cells are what the report of the same pruner keeps for the question alone."""
    folder, _ = made
    entries = json.loads((folder / GALLERY / ENTRIES).read_text())
    assert entries
    examples = load_suite("words", 5, 0)
    (spec,) = SETTINGS.methods
    for entry in entries:
        example = examples[entry["index"]]
        with Image.open(folder / GALLERY / entry["image"]) as image:
            assert image.size == example.image.size
        inputs = loaded.inputs([example.question], [[example.image]])
        with spec_pruner(spec)(loaded.model) as pruned, torch.inference_mode():
            loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)
        first = int((inputs["input_ids"][0] == loaded.model.config.image_token_id).nonzero()[0])
        kept = [position - first for position in pruned.report.stages[0].kept[0].tolist()]
        own = entry["answers"]["fastv:layer=1 @ 0.5"]
        assert [at for at, one in enumerate(token_list(own["cells"], VISUAL)) if one] == kept
        assert own["kept"] == len(kept) == VISUAL // 2
        oracle = token_list(entry["answers"]["evidence @ 0.5"]["cells"], VISUAL)
        assert entry["evidence"] == sorted(example.evidence.tolist())
        assert all(oracle[cell] for cell in entry["evidence"])
        assert entry["answers"]["dense"]["cells"] is None


def spec_pruner(spec):
    from foveate.pruners.spec import build

    return build(spec.name, {**spec.options, "keep": 0.5})


def test_changed_answers_of_each_task_in_turn():
    tasks, dense = "aaabb", "vwxyz"
    rows = [{"task": task, "answer": answer} for task, answer in zip(tasks, dense, strict=True)]
    other = [row | {"answer": row["answer"] if at == 1 else "?"} for at, row in enumerate(rows)]
    assert changed([("dense", rows), ("same", rows), ("other", other)], 9) == [0, 3, 2, 4]
    assert changed([("dense", rows), ("other", other)], 2) == [0, 3]
    assert changed([("dense", rows), ("same", rows)], 9) == []


def test_every_arm_is_timed(made):
    _, result = made
    assert result["time"]["rounds"] == 2
    for arm in result["arms"]:
        for part in ("prefill", "total"):
            assert arm["time"][f"{part}_ms"] > 0
            ratios = arm["time"][f"{part}_faster"]
            assert 0 < ratios["q25"] <= ratios["median"] <= ratios["q75"]
        assert arm["time"]["total_ms"] > arm["time"]["prefill_ms"]


def test_without_asking_nothing_is_kept(loaded, tmp_path):
    result = evaluate(loaded, dataclasses.replace(SETTINGS, gallery=0, timed=0), tmp_path)
    assert not (tmp_path / GALLERY).exists()
    assert "kept_tokens" not in (tmp_path / JOURNAL).read_text()
    assert "time" not in result
    assert all("time" not in arm for arm in result["arms"])


@pytest.mark.parametrize("number", [0, 1, 4, 5, 16, 2880])
def test_bits_there_and_back(number):
    kept = torch.rand(number, generator=torch.Generator().manual_seed(number)) < 0.3
    assert token_list(token_bits(kept), number) == kept.tolist()
