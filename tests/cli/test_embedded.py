"""The commands on the embedded model itself."""

import json

import pytest

from foveate.measure.eval.evaluate import RESULT
from foveate.tiny.model import WEIGHTS

pytestmark = pytest.mark.skipif(not (WEIGHTS / "model.safetensors").is_file(), reason="no weights in this checkout")


def test_demo(run, tmp_path):
    found = run("demo", "--picture", tmp_path / "demo.png", "--json", tmp_path / "demo.json")
    assert found.exit_code == 0, found.output
    data = json.loads((tmp_path / "demo.json").read_text())
    assert len({one["task"] for one in data["questions"]}) == 9
    assert data["right"]["dense"] >= 6
    assert data["report"]["prefills"][0]["stages"][0]["dense"] == [256] * 9
    assert "64 of 256" in found.output
    few, many = (len(kept) for kept in data["glimpse"]["report"]["prefills"][0]["stages"][0]["kept"])
    assert 0 < few < many < 64, "the cluttered question keeps more"
    assert data["glimpse"]["right"]["pruned"] == data["glimpse"]["right"]["dense"] > 0
    assert (tmp_path / "demo-glimpse.png").exists()


def test_the_oracle_answers_with_a_quarter_of_the_tokens(run, tmp_path):
    found = run("eval", "--samples", 17, "--keep", "0.25", "--methods", "greedyprune", "--oracle", "--out", tmp_path)
    assert found.exit_code == 0, found.output
    arms = {arm["arm"]: arm for arm in json.loads((tmp_path / RESULT).read_text())["arms"]}
    assert arms["evidence @ 0.25"]["right"] >= arms["dense"]["right"] - 3
    assert arms["evidence @ 0.25"]["measured"]["visual_tokens"] == 64
    assert not any(arm["skipped"]["questions"] for arm in arms.values())


def test_run_with_two_images(run, tmp_path, image_file):
    shown = ("--image", image_file, "--image", image_file)
    found = run("run", *shown, "--prompt", "how many red objects are there?", "--overlay", tmp_path / "kept.png")
    assert found.exit_code == 0, found.output
    assert (tmp_path / "kept.png").exists()
