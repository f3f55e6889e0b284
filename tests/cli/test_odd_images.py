"""Images smaller than a patch or far from square: the processor's own result, or one line that says what is wrong."""

import json

import pytest
from PIL import Image

from tests.cli.test_any_size import pytestmark  # noqa: F401
from tests.cli.test_run import in_one_line


@pytest.fixture
def ask(run, tmp_path):
    def invoke(model, width, height, *arguments):
        Image.new("RGB", (width, height), (200, 30, 30)).save(tmp_path / "odd.png")
        rest = ("--image", tmp_path / "odd.png", "--prompt", "w1", "--max-new-tokens", 2, *arguments)
        return run("run", "--model", model, *rest)

    return invoke


def test_fixed_size_model_scales_a_pixel_up(ask, llava_folder, tmp_path):
    found = ask(llava_folder, 1, 1, "--keep", 0.25, "--overlay", tmp_path / "kept.png")
    assert found.exit_code == 0, found.output
    assert "25.0 %" in found.output
    assert (tmp_path / "kept.png").exists()


def test_any_size_model_scales_a_pixel_up_to_one_token_and_keeps_it(ask, qwen, tmp_path):
    found = ask(qwen, 3, 3, "--keep", 0.5, "--json", tmp_path / "run.json")
    assert found.exit_code == 0, found.output
    (stage,) = json.loads((tmp_path / "run.json").read_text())["report"]["prefills"][0]["stages"]
    assert stage["per_image"] == [[[1, 1]]]


def test_an_image_too_long_and_thin_is_one_line(ask, qwen):
    in_one_line(ask(qwen, 2000, 3), "aspect ratio")
