"""Images of any size: another prompt template, other grids, and a smaller image has fewer tokens."""

import json

import pytest

from foveate.measure.eval.evaluate import RESULT
from tests.families.test_processing import needs_images, needs_no_torchvision
from tests.measure.folders import picture

pytestmark = [needs_no_torchvision, needs_images]  # the folder has no full video processor


def test_run_with_two_sizes(run, qwen, tmp_path):
    picture(1, 168, 112).save(tmp_path / "wide.png")
    picture(2, 84, 168).save(tmp_path / "high.png")
    found = run(
        *("run", "--model", qwen, "--image", tmp_path / "wide.png", "--image", tmp_path / "high.png"),
        *("--prompt", "w1 w2", "--max-new-tokens", 2, "--option", "per=image", "--keep", 0.5),
        *("--overlay", tmp_path / "kept.png"),
    )
    assert found.exit_code == 0, found.output
    assert "12 of 24, 9 of 18" in found.output
    assert (tmp_path / "kept.png").exists()


@pytest.mark.usefixtures("words_suite")
def test_downsampling_saves_tokens_here(run, qwen, tmp_path, monkeypatch):
    from foveate.measure.eval import suites as suite
    from tests.measure.folders import questions

    def larger(samples, seed):
        import dataclasses

        return [dataclasses.replace(one, image=picture(one.index, 168, 168)) for one in questions(samples, seed)]

    monkeypatch.setattr(suite, "SUITES", {"words": larger})
    few = ("--suite", "words", "--samples", 4, "--max-new-tokens", 2, "--out", tmp_path, "--methods", "greedyprune")
    found = run("eval", "--model", qwen, *few, "--keep", "0.25")
    assert found.exit_code == 0, found.output
    arms = {arm["arm"]: arm["measured"] for arm in json.loads((tmp_path / RESULT).read_text())["arms"]}
    assert arms["downsample @ 0.25"]["visual_tokens_share"] == pytest.approx(0.25)
    assert arms["downsample @ 0.25"]["mean_tokens_per_layer"] == pytest.approx(0.25)
    assert arms["downsample @ 0.25"]["flops_share"] is None
    assert arms["greedyprune @ 0.25"]["visual_tokens_share"] == pytest.approx(0.25)
