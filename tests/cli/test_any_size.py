"""Images of any size: another prompt template, other grids, and a smaller image has fewer tokens."""

import json

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from foveate.measure.evaluate import RESULT
from tests.families.test_processing import needs_images, needs_no_torchvision, qwen_folder
from tests.measure.folders import picture
from tests.tiny_models import MROPE, QWEN_VISION, TEXT

pytestmark = [needs_no_torchvision, needs_images]  # the folder has no full video processor


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = qwen_folder(tmp_path_factory.mktemp("qwen"), "qwen2_5_vl", "new")
    ids = {"vision_start_token_id": 7, "vision_end_token_id": 8, "image_token_id": 9, "video_token_id": 10}
    vision = dict(QWEN_VISION, patch_size=14, window_size=56, fullatt_block_indexes=[1])
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=dict(TEXT, rope_parameters=MROPE), **ids)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    model.save_pretrained(folder)
    return folder


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
    from foveate.measure import suite
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
