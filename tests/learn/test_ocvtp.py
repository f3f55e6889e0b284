"""Training OC-VTP's slots: the loss by hand, that it falls, the same run from the same seed, what is written."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import foveate
from foveate.cli.app import app
from foveate.learn.btp.samples import Sample
from foveate.learn.data import from_scenes
from foveate.learn.errors import TrainingDataError, TrainingError
from foveate.learn.ocvtp import train
from foveate.learn.ocvtp.decoder import SlotDecoder, area_weighted_error, reconstruction_loss, some_shown
from foveate.learn.ocvtp.train import RESULT, SlotSettings, counts, features_of, image_samples, train_slots
from foveate.measure.loading import load_model
from foveate.pruners.ocvtp.modules import SlotConfig, SlotModules
from tests.shared_state import draws

SIZES = SlotConfig(1, 160, 16)


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny")


def test_the_loss_is_the_area_weighted_error():
    torch.manual_seed(0)
    rebuilt, features, share = torch.randn(2, 7, 3), torch.randn(2, 7, 3), torch.randn(2, 4, 7).mul(3).softmax(1)
    share[:, 3] = 1e-6  # a slot that owns nothing: its weight is capped
    expected = 0.0
    for image in range(2):
        owners = [max(range(4), key=lambda slot, token=token: share[image, slot, token]) for token in range(7)]
        weights = [max(owners.count(slot) / 7, 1e-8) ** -0.5 for slot in range(4)]
        weights = [min(weight / (sum(weights) / 4), 10) for weight in weights]
        each = [sum(float(share[image, slot, token]) * weights[slot] for slot in range(4)) for token in range(7)]
        errors = [float((rebuilt[image, token] - features[image, token]).square().mean()) for token in range(7)]
        expected += sum(weight * error for weight, error in zip(each, errors, strict=True)) / sum(each) / 2
    assert float(area_weighted_error(rebuilt, features, share)) == pytest.approx(expected, rel=1e-4)


def test_what_the_decoder_is_shown():
    torch.manual_seed(0)
    many = some_shown(400, 50).sum(-1)
    assert 150 < int((many == 5).sum()) < 260, "a tenth in about half of the cases"
    assert many.min() < 5 < 40 < many.max() < 50
    decoder, slots = SlotDecoder(9, 6, 8, heads=2), torch.randn(1, 3, 8)
    features, hidden = torch.randn(1, 9, 6), torch.tensor([[True] * 4 + [False] * 5])
    changed = features.index_fill(1, torch.tensor([6]), 5.0)
    assert torch.equal(decoder(features, hidden, slots), decoder(changed, hidden, slots)), "what is hidden is not seen"
    assert not torch.equal(decoder(features, hidden, slots), decoder(features, hidden, slots + 1))


def test_gradients_go_through_the_last_iteration_alone():
    torch.manual_seed(0)
    modules, decoder = SlotModules(SlotConfig(0, 6, 8)), SlotDecoder(12, 6, 8, heads=2)
    features = torch.randn(2, 12, 6)
    reconstruction_loss(modules, decoder, features, 3).backward()
    assert all(weight.grad is not None for weight in (*modules.parameters(), *decoder.parameters()))
    attention, start = modules.attention, torch.randn(2, 3, 8, requires_grad=True)
    there, tokens = torch.ones(2, 12, dtype=torch.bool), modules.encoder(features).detach()
    attention(tokens, there, start, lambda share: None).sum().backward()
    attention.iterations = 2
    middle = attention(tokens, there, start, lambda share: None).detach().requires_grad_()
    attention.iterations = 1
    attention(tokens, there, middle, lambda share: None).sum().backward()
    torch.testing.assert_close(start.grad, middle.grad)


def grouped(images: int = 24) -> torch.Tensor:
    """Features (I, 36, 8) with a few kinds of tokens in each image, which slots can tell apart."""
    torch.manual_seed(1)
    kinds = torch.randn(5, 8) * 2
    return kinds[torch.randint(0, 5, (images, 36))] + 0.1 * torch.randn(images, 36, 8)


def fitted(seed: int, steps: int = 60):
    torch.manual_seed(seed)
    modules, decoder = SlotModules(SlotConfig(0, 8, 16)), SlotDecoder(36, 8, 16, layers=2)
    settings = SlotSettings(batch_size=8, max_steps=steps, learning_rate=3e-3, seed=seed)
    history = train._fit(modules, decoder, grouped(), settings, None)
    return modules, decoder, history


def test_training_lowers_the_loss_and_is_the_same_from_the_same_seed():
    modules, _, history = fitted(5)
    assert [row["step"] for row in history] == [10, 20, 30, 40, 50, 60]
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    again, _, same = fitted(5)
    assert same == history
    assert again == modules
    assert fitted(6, 10)[2][0] != history[0]


def test_rates_and_counts():
    settings = SlotSettings(batch_size=12, epochs=30)
    assert settings.steps(100) == 250
    rates = [settings.rate(step, 30) for step in range(30)]
    assert rates[:5] == [pytest.approx(1e-3 * part) for part in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 25 / 26)) / 2, rel=1e-2)
    assert counts(576) == [16, 32, 64, 128]
    assert counts(9) == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"warmup": 1.0}, "warmup"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"max_steps": 0}, "max_steps"),
        ({"epochs": 0.0}, "epochs"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(TrainingError, match=message):
        SlotSettings(**changes)


def test_what_is_written(loaded, tmp_path):
    samples, before = from_scenes(6, 5, per_scene=1), draws()
    settings = SlotSettings(batch_size=3, max_steps=2)
    result = train_slots(loaded, samples, from_scenes(2, 6, per_scene=1).items, settings, tmp_path, SIZES)
    assert draws() == before
    assert json.loads((tmp_path / RESULT).read_text()) == json.loads(json.dumps(result))
    assert (result["configuration"]["tokens"], result["held_out"]["images"]) == (256, 2)
    pruner = foveate.load(tmp_path)
    assert pruner.weights.config == SIZES
    assert not pruner.weights.training
    with pruner(loaded.model) as pruned, torch.no_grad():
        loaded.model(**loaded.process(["what?"], [[samples.items[0].image()]]))
    assert pruned.report.stages[0].kept[0].numel() == round(0.22 * 256)


def test_images_of_several_sizes_are_refused(loaded):
    """The embedded model scales all images to one size; two of them in one prompt are as one of another size."""
    scene = from_scenes(1, 5).items[0].image()
    two = dataclasses.replace(loaded)
    object.__setattr__(two, "process", lambda questions, images: loaded.process(questions, [[scene], [scene, scene]]))
    with pytest.raises(TrainingDataError, match="256 and 512 visual tokens"):
        features_of(two, [Sample("", scene), Sample("", scene)], 1, 2)


def test_images_of_a_folder(tmp_path):
    for number in range(3):
        Image.fromarray(np.full((8, 8, 3), 50 * number, np.uint8)).save(tmp_path / f"{number}.png")
    given, apart = image_samples(tmp_path, None, 2, 1, 0)
    assert sorted(one.source.name for one in (*given.items, *apart)) == ["0.png", "1.png", "2.png"]
    with pytest.raises(TrainingDataError, match="no suite 'nosuch'"):
        image_samples(None, "nosuch", 2, 1, 0)


def test_the_command(tmp_path):
    words = "train ocvtp --suite scenes --samples 3 --held-out 2 --max-steps 1 --size 8 --device cpu --out"
    result = CliRunner().invoke(app, [*words.split(), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "loss on 2 held-out images" in result.output
    assert foveate.load(tmp_path / "out").weights.config.size == 8
