"""Training a predictor: resuming, what is written, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import foveate
from foveate.cli.app import app
from foveate.families import family_of
from foveate.learn.data import GroundedSamples, from_scenes
from foveate.learn.errors import TrainingDataError, TrainingError
from foveate.learn.glimpse.check import check
from foveate.learn.glimpse.train import CHECKPOINTS, PICTURE, RESULT, GlimpseSettings, train_glimpse
from foveate.measure.loading import load_model
from foveate.pruners.glimpseprune.sizes import sizes_for
from tests.models.build import SEEING, build
from tests.shared_state import draws

SETTINGS = GlimpseSettings(
    batch_size=2, accumulation=2, max_steps=4, learning_rate=1e-3, check_every=2, check_samples=4, save_every=2
)


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny")


@pytest.fixture(scope="module")
def samples():
    return from_scenes(20, 5)


@pytest.fixture(scope="module")
def trained(loaded, samples, tmp_path_factory):
    """A run of four updates, and its folder as it was after two."""
    folder = tmp_path_factory.mktemp("run")
    config = sizes_for(loaded.model, size=16, condition_size=16)
    before = draws()
    result = train_glimpse(loaded, samples, from_scenes(6, 6).items, SETTINGS, folder, config)
    assert draws() == before
    return folder, config, result


def test_what_is_written(loaded, trained):
    folder, config, result = trained
    assert json.loads((folder / RESULT).read_text()) == json.loads(json.dumps(result))
    assert (folder / PICTURE).stat().st_size > 1000
    pruner = foveate.load(folder)
    assert pruner.weights.config == config
    assert pruner.weights.about["base_model"] == "tiny"
    assert "recall" in (folder / "README.md").read_text()
    assert [look["step"] for look in result["checks"]] == [2, 4]
    assert set(result["held_out"]) == {"dense", "no cap", "at most 11.1%"}
    assert result["held_out"]["dense"]["kept"] == 1
    assert result["held_out"]["at most 11.1%"]["kept"] <= 0.111
    assert all(weight.requires_grad for weight in loaded.model.parameters()), "the model is as it was"


def test_a_resumed_run_equals_an_uninterrupted_one(loaded, samples, trained, tmp_path):
    folder, config, result = trained
    first = train_glimpse(
        loaded,
        samples,
        from_scenes(6, 6).items,
        dataclasses.replace(SETTINGS, save_every=2),
        tmp_path / "half",
        config,
    )
    assert first["history"] == result["history"], "the same seed, the same run"
    # as if it had been stopped after two updates
    stopped = tmp_path / "stopped"

    class Stop(Exception):
        pass

    def stop(what, done, total):
        if what == "training" and done == 3:
            raise Stop

    with pytest.raises(Stop):
        train_glimpse(loaded, samples, from_scenes(6, 6).items, SETTINGS, stopped, config, progress=stop)
    assert [path.name for path in (stopped / CHECKPOINTS).iterdir()] == ["checkpoint-2"]
    assert all(weight.requires_grad for weight in loaded.model.parameters())
    with pytest.raises(TrainingDataError, match="--resume"):
        train_glimpse(loaded, samples, from_scenes(6, 6).items, SETTINGS, stopped, config)
    again = train_glimpse(loaded, samples, from_scenes(6, 6).items, SETTINGS, stopped, config, resume=True)
    assert again["checks"] == result["checks"]
    ours, theirs = foveate.load(stopped).weights, foveate.load(folder).weights
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_nothing_to_learn(loaded, samples, tmp_path):
    bare = tuple(dataclasses.replace(sample, boxes=()) for sample in samples.items)
    with pytest.raises(TrainingDataError, match="no sample of mine has a box"):
        train_glimpse(loaded, GroundedSamples(bare, "mine", "0"), samples.items, SETTINGS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_check_counts_what_was_kept(loaded):
    samples = from_scenes(4, 9).items
    everything = check(loaded, samples, foveate.GlimpsePrune(threshold=0.0, layer=8))
    assert everything.recall > 0.95
    few = check(loaded, samples, foveate.GlimpsePrune(keep=0.05, layer=8))
    assert few.kept == pytest.approx(13 / 256)
    assert few.recall < everything.recall
    dense = check(loaded, samples, None)
    assert (dense.kept, dense.questions, dense.recall, dense.precision) == (1, 4, None, None)
    bare = [dataclasses.replace(sample, boxes=()) for sample in samples]
    assert check(loaded, bare, foveate.GlimpsePrune(keep=0.05, layer=8)).recall is None


@pytest.mark.parametrize("family", SEEING)
def test_sizes_of_every_family(family):
    model = build(family)
    assert family_of(model).vision_width(model.config) == 32
    config = sizes_for(model)
    assert (config.depth, config.hidden_size, config.heads, config.layer) == (6, 64, 4, 4)
    assert config.vision_layers == (2, 1, 0)


def test_command(tmp_path):
    data = tmp_path / "train.jsonl"
    lines = []
    for number, sample in enumerate(from_scenes(12, 5, per_scene=1).items):
        sample.image().save(tmp_path / f"{number}.png")
        lines.append(
            json.dumps(
                {
                    "image": f"{number}.png",
                    "question": sample.question,
                    "answer": sample.answer,
                    "boxes": sample.boxes,
                }
            )
        )
    data.write_text("\n".join(lines))
    command = ["train", "glimpse", "--data", str(data), "--out", str(tmp_path / "out"), "--held-out", "3"]
    command += [
        "--batch-size",
        "4",
        "--accumulation",
        "1",
        "--max-steps",
        "1",
        "--size",
        "16",
        "--condition-size",
        "16",
    ]
    result = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "result.json")])
    assert result.exit_code == 0, result.output
    assert "foveate.load" in result.output
    assert json.loads((tmp_path / "result.json").read_text())["configuration"]["samples"] == 9
    assert foveate.load(tmp_path / "out").weights.config.size == 16
    shutil.rmtree(tmp_path / "out")
    for wrong, message in (
        (["--suite", "scenes"], "give one of"),
        (["--vision-layers", "7,1"], "7"),
        (["--vision-layers", "deep"], "31,23,15,7"),
        (["--learning-rate", "nan"], "learning-rate"),
        (["--max-keep", "1.5"], "max_keep"),
        (["--max-steps", "-1", "--epochs", "nan"], "epochs"),
        (["--size", "10"], "multiple of 4"),
    ):
        result = CliRunner().invoke(app, [*command, *wrong])
        assert result.exit_code == 2
        assert message in result.output
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_share_an_update(tmp_path):
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "foveate", "train", "glimpse"]
    settings = ["--suite", "scenes", "--samples", "16", "--held-out", "3", "--batch-size", "2", "--accumulation", "1"]
    sizes = ["--max-steps", "2", "--size", "16", "--condition-size", "16", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, *launch, *settings, *sizes, "--out", "out", "--json", "told.json"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("foveate.load") == 1, "one process speaks"
    assert json.loads((tmp_path / "told.json").read_text())["held_out"]["dense"]["questions"] == 3
    assert foveate.load(tmp_path / "out").weights.config.size == 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_precision(samples, tmp_path, dtype):
    settings = dataclasses.replace(SETTINGS, bf16=True, max_steps=1, check_every=0)
    loaded = load_model("tiny", dtype=dtype)
    config = sizes_for(loaded.model, size=16, condition_size=16)
    result = train_glimpse(loaded, samples, samples.items[:2], settings, tmp_path, config)
    weights = foveate.load(tmp_path).weights
    assert all(value.isfinite().all() for value in weights.parameters())
    assert weights.glimpse.rows.dtype == torch.float32, "the weights themselves are not rounded"
    assert result["held_out"]["no cap"]["kept"] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"accumulation": -1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warmup": 1.0},
        {"dropout": float("nan")},
        {"epochs": 0.0},
        {"check_every": -1},
        {"save_every": 0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(TrainingError, match=next(iter(wrong))):
        GlimpseSettings(**wrong)
