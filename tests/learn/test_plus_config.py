import dataclasses
import json

import pytest

from foveate.learn.errors import TrainingError
from foveate.learn.glimpse.step import Weighing
from foveate.learn.glimpse.train import GlimpseSettings
from foveate.learn.glimpse_plus.config import PlusSettings, read_settings
from foveate.learn.glimpse_plus.rewards import Judge


def write(folder, text, name="plus.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def test_the_defaults_are_the_published_ones():
    settings = PlusSettings(model="tiny")
    assert (settings.group, settings.beta, settings.lr, settings.warmup) == (4, 0.04, 1e-4, 0.1)
    assert (settings.lora_rank, settings.lora_alpha, settings.lora_dropout) == (32, 64, 0.05)
    assert (settings.max_completion, settings.max_prompt, settings.temperature) == (128, 6000, 1.0)
    assert settings.max_pruned_prompt == 512
    assert settings.glimpse == GlimpseSettings()
    assert (settings.grad_norm, settings.epochs, settings.pruned) == (1.0, 1.0, True)


def test_yaml_and_json_say_the_same(tmp_path):
    yaml = write(
        tmp_path,
        "model: tiny\nlr: 1e-4\nepochs: 2\nlayer: 3\npruned: false\n"
        "judge:\n  url: http://localhost:1/v1\n  timeout: 5\n"
        "glimpse:\n  max_keep: 1\n  weighing:\n    bce: 2\n",
    )
    values = {
        "model": "tiny",
        "lr": 1e-4,
        "epochs": 2,
        "layer": 3,
        "judge": {"url": "http://localhost:1/v1", "timeout": 5},
        "pruned": False,
        "glimpse": {"max_keep": 1.0, "weighing": {"bce": 2.0}},
    }
    as_json = write(tmp_path, json.dumps(values), "plus.json")
    settings = read_settings(yaml)
    assert settings == read_settings(as_json)
    assert settings.judge == Judge("http://localhost:1/v1", timeout=5.0)
    assert isinstance(settings.lr, float)
    assert isinstance(settings.epochs, float)
    assert settings == dataclasses.replace(
        PlusSettings(model="tiny"),
        epochs=2.0,
        layer=3,
        judge=settings.judge,
        pruned=False,
        glimpse=GlimpseSettings(max_keep=1.0, weighing=Weighing(bce=2.0)),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: tiny\nlearning_rate: 1", "no setting learning_rate; there are model, data"),
        ("lr: 1", "lacks model"),
        ("model: 3", "model must be str"),
        ("model: tiny\nlr: fast", "lr must be float"),
        ("model: tiny\ngroup: 4.0", "group must be int"),
        ("model: tiny\ngroup: true", "group must be int"),
        ("model: tiny\nlr: true", "lr must be float"),
        ("model: tiny\npruned: 1", "pruned must be bool"),
        ("model: tiny\nsamples: few", "samples must be int"),
        ("model: tiny\nlayer: deep", "layer must be int or null"),
        ("model: tiny\nglimpse: {weighing: {dise: 1}}", "glimpse, weighing has no setting dise"),
        ("model: tiny\nlr: null", "lr must be float"),
        ("model: tiny\njudge:\n  link: a", "judge has no setting link"),
        ("model: tiny\njudge: {}", "judge lacks url"),
        ("model: tiny\njudge: http://x", "judge must be Judge or null"),
        ("- model", "settings by name"),
        ("", "settings by name"),
        ("model: [", "cannot read"),
    ],
)
def test_a_file_that_does_not_do(tmp_path, text, told):
    with pytest.raises(TrainingError, match=told):
        read_settings(write(tmp_path, text))


def test_no_file(tmp_path):
    with pytest.raises(TrainingError, match="cannot read"):
        read_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"group": 1}, "group must be at least 2"),
        ({"prompts": 0}, "prompts must be at least 1"),
        ({"micro_batch": 3}, "32 answers do not divide"),
        ({"warmup": 1.0}, "warmup"),
        ({"lora_dropout": -0.1}, "lora_dropout"),
        ({"lr": 0.0}, "positive"),
        ({"beta": -1.0}, "not negative"),
        ({"epochs": 0.0}, "max_steps or epochs"),
        ({"layer": 3, "predictor": "fastv"}, "not both"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"rollouts": "vllm"}, "hooks do not exist there"),
        ({"gradient_checkpointing": True}, "without a KV cache"),
    ],
)
def test_settings_that_make_no_sense(wrong, told):
    with pytest.raises(TrainingError, match=told):
        PlusSettings(model="tiny", **wrong)


def test_checkpointing_goes_without_pruning():
    assert PlusSettings(model="tiny", gradient_checkpointing=True, pruned=False).gradient_checkpointing
