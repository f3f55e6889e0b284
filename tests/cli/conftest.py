import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from typer.testing import CliRunner

from foveate.cli import app
from foveate.measure.eval import suites as suite
from tests.families.test_processing import qwen_folder
from tests.measure.folders import picture, questions, save_llava
from tests.models.sizes import MROPE, QWEN_VISION, TEXT


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    """A random Qwen2.5-VL, for images alone."""
    folder = qwen_folder(tmp_path_factory.mktemp("qwen"), "qwen2_5_vl", "new")
    ids = {"vision_start_token_id": 7, "vision_end_token_id": 8, "image_token_id": 9, "video_token_id": 10}
    vision = dict(QWEN_VISION, patch_size=14, window_size=56, fullatt_block_indexes=[1])
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=dict(TEXT, rope_parameters=MROPE), **ids)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def words_suite(monkeypatch):
    monkeypatch.setattr(suite, "SUITES", {"words": questions})


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "image.png"
    picture().save(path)
    return path


@pytest.fixture
def run():
    def invoke(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke
