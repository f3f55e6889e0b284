"""`foveate check`: laws that hold hold, broken ones are broken, and what cannot be tested is said, too."""

import json

import pytest
import torch

from foveate.engine.arguments import cache_of
from foveate.measure import loading
from foveate.measure.check import tolerance as check_noise
from foveate.testing.laws import ALONE, KEEP_ALL, MASKED
from tests.cli.test_run import in_one_line
from tests.families.test_processing import needs_images, needs_no_torchvision


def laws(path):
    """{(inputs, law): what came of it} of a JSON file with one method."""
    data = json.loads(path.read_text())
    assert data["format"] == "foveate-check-1"
    return {(result["inputs"], law["law"]): law for result in data["results"] for law in result["laws"]}


def broken_model(monkeypatch, breaking):
    """The command gets a model that something was done to."""
    load = loading.load_model

    def broken(*args, **kwargs):
        loaded = load(*args, **kwargs)
        breaking(loaded.model)
        return loaded

    monkeypatch.setattr(loading, "load_model", broken)


def positions_by_count(model):
    """Each attention layer makes its own rotary tables, from the number of tokens it is given."""

    def count(module, args, kwargs):
        hidden, cache = kwargs["hidden_states"], cache_of(kwargs)
        past = cache.get_seq_length(module.layer_idx) if cache is not None else 0
        positions = torch.arange(past, past + hidden.shape[1])[None]
        return args, {**kwargs, "position_embeddings": model.get_decoder().rotary_emb(hidden, positions)}

    for layer in model.get_decoder().layers:
        layer.self_attn.register_forward_pre_hook(count, with_kwargs=True)


def test_the_embedded_model(run, tmp_path):
    found = run("check", "--methods", "random", "--steps", 2, "--json", tmp_path / "check.json")
    assert found.exit_code == 0, found.output
    assert "all 7 checks hold" in found.output
    one = laws(tmp_path / "check.json")
    assert all(one["one image", name]["holds"] for name in (KEEP_ALL, MASKED))
    assert one["a ragged batch", KEEP_ALL]["difference"] == 0
    assert 0 < one["a ragged batch", MASKED]["difference"] < 1e-4


@needs_no_torchvision
@needs_images
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_images_of_any_size_and_every_usual_method(run, qwen, dtype):
    found = run("check", qwen, "--dtype", dtype, "--attn", "eager", "--steps", 2)
    assert found.exit_code == 0, found.output
    assert f"Qwen2_5_VLForConditionalGeneration, {dtype}, eager" in found.output
    for method in ("random", "fastv", "uneven"):
        assert f"| a ragged batch | {method}" in found.output
    assert "pruned equals masked: not tested" not in found.output
    assert dtype != "float32" or "all 21 checks hold" in found.output


def test_a_model_that_makes_its_own_positions_is_caught(run, llava_folder, tmp_path, monkeypatch):
    broken_model(monkeypatch, positions_by_count)
    found = run("check", llava_folder, "--methods", "random", "--json", tmp_path / "check.json")
    assert found.exit_code == 1, found.output
    assert "checks are broken" in found.output
    one = laws(tmp_path / "check.json")
    assert one["one image", KEEP_ALL]["holds"]
    assert one["one image", MASKED]["holds"] is False
    assert one["one image", MASKED]["difference"] > 1e-2


def test_a_model_that_hides_nothing_is_caught(run, llava_folder, tmp_path, monkeypatch):
    """Its own batches are wrong, too: that is no fault of pruning, but must not pass for rounding."""

    def see_all(module, args, kwargs):
        return args, {**kwargs, "attention_mask": None}

    def careless(model):
        for layer in model.get_decoder().layers:
            layer.self_attn.register_forward_pre_hook(see_all, with_kwargs=True)

    broken_model(monkeypatch, careless)
    found = run("check", llava_folder, "--methods", "random", "--json", tmp_path / "check.json")
    assert found.exit_code == 1, found.output
    one = laws(tmp_path / "check.json")
    assert one["one image", MASKED]["holds"] is False
    assert one["a ragged batch", ALONE]["holds"] is None
    assert "the dense model itself" in one["a ragged batch", ALONE]["reason"]


def test_a_run_that_stops_is_told(run, llava_folder, monkeypatch):
    def only_long(module, args, kwargs):
        if 1 < args[0].shape[1] < 40:
            raise IndexError("too short for me")

    def picky(model):
        model.get_decoder().layers[5].register_forward_pre_hook(only_long, with_kwargs=True)

    broken_model(monkeypatch, picky)
    found = run("check", llava_folder, "--methods", "random:keep=2")
    assert found.exit_code == 1, found.output
    assert "the run stops with IndexError: too short for me" in found.output
    assert "a batch equals its samples: broken" in found.output


def test_without_a_reference_the_other_laws_are_tested(run, llava_folder, tmp_path, monkeypatch):
    def none(*args, **kwargs):
        raise ValueError("no masks here")

    monkeypatch.setattr(check_noise, "reference_logits", none)
    found = run("check", llava_folder, "--methods", "uneven", "--json", tmp_path / "check.json")
    assert found.exit_code == 0, found.output
    assert "it does not fit" in found.output
    one = laws(tmp_path / "check.json")
    assert one["one image", MASKED]["holds"] is None
    assert "NaN" not in (written := (tmp_path / "check.json").read_text())
    assert "Infinity" not in written
    assert one["a ragged batch", KEEP_ALL]["holds"]
    assert one["a ragged batch", ALONE]["holds"]


def test_what_the_model_does_not_take_is_skipped(run, llava_folder, monkeypatch):
    def picky(model):
        images = model.model.get_image_features

        def one(pixel_values, *args, **kwargs):
            if len(pixel_values) > 1:
                raise ValueError("one image, please")
            return images(pixel_values, *args, **kwargs)

        model.model.get_image_features = one

    broken_model(monkeypatch, picky)
    found = run("check", llava_folder, "--methods", "random")
    assert found.exit_code == 0, found.output
    assert "the dense model does not take two images: ValueError: one image, please" in found.output
    assert "the dense model does not take a ragged batch: ValueError: one image, please" in found.output
    assert "all 2 checks hold" in found.output


def test_a_smaller_batch_where_the_first_is_not_taken(run, llava_folder, monkeypatch):
    process = loading.LoadedModel.process

    def picky(self, questions, images, *videos):
        if not all(images):
            raise loading.InputError("an image, please")
        return process(self, questions, images, *videos)

    monkeypatch.setattr(loading.LoadedModel, "process", picky)
    found = run("check", llava_folder, "--methods", "random", "--steps", 2)
    assert found.exit_code == 0, found.output
    assert "the dense model does not take a ragged batch: InputError: an image, please" in found.output
    assert "| a ragged batch of images | random" in found.output
    assert "all 7 checks hold" in found.output


def test_a_method_that_is_refused_leaves_the_others(run, llava_folder):
    found = run("check", llava_folder, "--methods", "random,fastv:layer=99", "--steps", 1)
    assert found.exit_code == 0, found.output
    assert "fastv is refused: fastv: layer 99 is not in a model of 6 decoder layers" in found.output
    assert "all 7 checks hold" in found.output


def unlisted(folder, source):
    """A folder like `source`, of a type that is not listed but whose class is LLaVA's own."""
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "janus"}))
    return folder


def test_an_unlisted_family(run, llava_folder, tmp_path):
    in_one_line(run("check", unlisted(tmp_path, llava_folder)), "janus")


def test_a_family_of_one_s_own(run, llava_folder, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from foveate.families import Family\nMINE = Family('llava', 'Mine', 'me/mine')\n"
    )
    for name in ("default", "llava", f"{tmp_path / 'mine.py'}:MINE"):
        found = run("check", llava_folder, "--methods", "random", "--steps", 1, "--family", name)
        assert found.exit_code == 0, found.output


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--methods", "nope"), "nope"),
        (("--methods", ","), "no method"),
        (("--methods", "random:keep=2.0"), "keep"),
        (("--methods", "fastv:layer=99"), "layer"),
        (("--family", "nope"), "FILE.py:NAME"),
        (("--attn", "nope"), "nope"),
        (("--dtype", "int8"), "bfloat16"),
        (("--device", "nowhere"), "nowhere"),
    ],
)
def test_bad_options(run, llava_folder, arguments, word):
    in_one_line(run("check", llava_folder, *arguments), word)


def test_no_such_model(run, tmp_path):
    in_one_line(run("check", tmp_path / "none"), "folder")
