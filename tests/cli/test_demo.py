"""The command on a stand-in: what the embedded model answers is its own tests' business."""

import json
from importlib import import_module

import pytest
from PIL import Image

import foveate
from foveate.measure import loading
from foveate.measure.bench.timing import PrefillTime
from foveate.measure.eval import suites as suite
from foveate.measure.tables import time_note
from tests.measure.folders import questions

demo_command = import_module("foveate.cli.demo")  # the package has the function of that name


@pytest.fixture
def demo(run, llava_folder, tmp_path, monkeypatch):
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda name, device: load(str(llava_folder), device))
    monkeypatch.setattr(suite, "SUITES", {"scenes": questions})
    foveate.GlimpsePrune(keep=7).save_pretrained(tmp_path / "predictor")  # the shipped one is for another model
    monkeypatch.setattr(demo_command, "SHIPPED", str(tmp_path / "predictor"))
    return lambda *arguments: run("demo", "--questions", 3, "--picture", tmp_path / "demo.png", *arguments)


def test_tables_picture_and_json(demo, tmp_path):
    found = demo("--json", tmp_path / "demo.json")
    assert found.exit_code == 0, found.output
    assert "embedded model" in found.output
    assert found.output.count("4 of 16") == 3
    assert "prefill of the batch" in found.output
    assert Image.open(tmp_path / "demo.png").width > 1000
    data = json.loads((tmp_path / "demo.json").read_text())
    assert data["format"] == "foveate-demo-1"
    assert len(data["questions"]) == 3
    assert {"dense", "pruned", "truth", "question", "task"} == set(data["questions"][0])
    assert data["prefill_time"]["ratio"] > 0
    assert found.output.count("7 of 16") == 2
    assert Image.open(tmp_path / "demo-glimpse.png").width > 500
    assert len(data["glimpse"]["questions"]) == 2
    assert data["report"]["prefills"][0]["stages"][0]["dense"] == [16, 16, 16]


def test_any_method_and_budget(demo):
    found = demo("--method", "random", "--keep", 0.5, "--option", "layer=3")
    assert found.exit_code == 0, found.output
    assert "Random(" in found.output
    assert "before decoder layer 3" in found.output
    assert demo("--method", "nope").exit_code == 2


@pytest.mark.parametrize(("ratio", "word"), [(0.5, "50 %"), (1.0, "no faster"), (1.4, "SLOWER")])
def test_a_loss_of_time_is_said_as_plainly_as_a_gain(ratio, word):
    assert word in time_note(PrefillTime(ratio, 10.0, 10.0 * ratio, 1.0, 9))
