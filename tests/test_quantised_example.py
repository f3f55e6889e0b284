"""docs/quantised.md, with a small Qwen3-VL on a CPU: quantised into a folder, checked, asked.

`pip install bitsandbytes torchao accelerate`; without them this file is skipped.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from typer.testing import CliRunner

from foveate.cli import app
from tests.families.test_processing import needs_images, picture, qwen_folder
from tests.models.build import make
from tests.models.sizes import MROPE, QWEN_VISION, TEXT

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = {"nf4": "bitsandbytes", "int8": "torchao"}
pytestmark = [needs_images, pytest.mark.filterwarnings("ignore")]  # the libraries' own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Qwen3-VL with random weights and a processor."""
    found = qwen_folder(tmp_path_factory.mktemp("qwen3"), "qwen3_vl", "new")
    vision = dict(QWEN_VISION, patch_size=16, deepstack_visual_indexes=[0, 1, 2], num_position_embeddings=64)
    ids = {"vision_start_token_id": 7, "vision_end_token_id": 8, "image_token_id": 9, "video_token_id": 10}
    text = dict(TEXT, head_dim=16, intermediate_size=128, rope_parameters=MROPE)  # bitsandbytes has blocks of 64
    model = make(Qwen3VLForConditionalGeneration, Qwen3VLConfig(vision_config=vision, text_config=text, **ids))
    model.to(torch.bfloat16).save_pretrained(found)
    return found


def script(*arguments: object) -> str:
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / "quantised.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=LIBRARIES)
def quantised(request, folder, tmp_path_factory):
    pytest.importorskip(LIBRARIES[request.param])
    pytest.importorskip("accelerate")
    found = tmp_path_factory.mktemp("quantised") / request.param
    assert "GiB of weights" in script(folder, found, "--weights", request.param)
    return request.param, found


def test_the_decoder_is_quantised_and_nothing_else(quantised):
    kind, folder = quantised
    assert json.loads((folder / "config.json").read_text())["quantization_config"]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    plain = {type(module.weight) for module in model.model.visual.modules() if isinstance(module, torch.nn.Linear)}
    assert plain == {torch.nn.Parameter} == {type(model.lm_head.weight)}
    weights = {type(layer.self_attn.q_proj.weight).__name__ for layer in model.get_decoder().layers}
    assert weights == {{"nf4": "Params4bit", "int8": "Int8Tensor"}[kind]}


def test_foveate_check(quantised, tmp_path):
    _, folder = quantised
    out = CliRunner().invoke(
        app,
        [
            "check",
            str(folder),
            "--methods",
            "greedyprune:keep=0.22,random",
            "--steps",
            "2",
            "--device",
            "cpu",
            "--json",
            str(tmp_path / "check.json"),
        ],
    )
    assert out.exit_code == 0, out.output
    assert "checks hold" in out.output
    results = json.loads((tmp_path / "check.json").read_text())["results"]
    assert {result["method"] for result in results if result["laws"]} == {"greedyprune", "random"}


def test_an_answer(quantised, tmp_path):
    _, folder = quantised
    picture(256, 192).save(tmp_path / "image.png")
    out = script(folder, "--image", tmp_path / "image.png", "--prompt", "w1 w2", "--keep", "0.25")
    assert re.search(r"^dense: .*^pruned: .*^visual tokens kept before layer 2: 12 of 48;", out, re.M | re.S)


def test_the_page_says_what_was_tested():
    text = (ROOT / "docs" / "quantised.md").read_text(encoding="utf-8")
    assert "full-size run was not made" in text
    commands = re.findall(r"^(?:python examples/quantised\.py|foveate) .*$", text, flags=re.MULTILINE)
    assert len(commands) == 4
