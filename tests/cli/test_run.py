import json
import time

import pytest
from PIL import Image

from foveate import BTP
from foveate.measure import images
from tests.measure.folders import picture


@pytest.fixture
def ask(run, llava_folder, image_file):
    def invoke(*arguments, image=image_file):
        shown = () if image is None else ("--image", image)
        return run(
            "run", "--model", llava_folder, *shown, "--prompt", "what is this ?", "--max-new-tokens", 3, *arguments
        )

    return invoke


def test_answer_report_picture_and_json(ask, tmp_path):
    found = ask("--keep", 0.25, "--overlay", tmp_path / "kept.png", "--json", tmp_path / "run.json")
    assert found.exit_code == 0, found.output
    assert "25.0 %" in found.output
    assert Image.open(tmp_path / "kept.png").width > 600
    data = json.loads((tmp_path / "run.json").read_text())
    assert data["format"] == "foveate-run-1"
    assert data["answer"] == found.output.splitlines()[0]
    (prefill,) = data["report"]["prefills"]
    (stage,) = prefill["stages"]
    assert len(stage["kept"][0]) == 4
    assert stage["dense"] == [16]


def test_a_saved_pruner_with_its_own_budget_and_a_warning(ask, tmp_path):
    stages = [(1, 0.5, 0.4), (2, 0.25, 1.0), (3, 0.0)]
    BTP(stages=stages, final="drop").save_pretrained(tmp_path / "mine")
    found = ask("--method", tmp_path / "mine", "--overlay", tmp_path / "kept.png", "--json", tmp_path / "run.json")
    assert found.exit_code == 0, found.output
    assert "every visual token is dropped before layer 3" in " ".join(found.output.split())
    (prefill,) = json.loads((tmp_path / "run.json").read_text())["report"]["prefills"]
    assert [len(stage["kept"][0]) for stage in prefill["stages"]] == [8, 4, 0]
    assert (tmp_path / "kept.png").exists()
    found = ask("--method", tmp_path / "mine", "--option", "final=keep", "--keep", "0.6")
    assert found.exit_code == 0, found.output
    assert "dropped" not in found.output


def test_errors_of_each_cut(ask, tmp_path):
    found = ask("--method", "btp", "--keep", 0.5, "--stage-errors", "--json", tmp_path / "run.json")
    assert found.exit_code == 0, found.output
    errors = json.loads((tmp_path / "run.json").read_text())["stage_errors"]
    assert [one["layer"] for one in errors] == [1, 2, 3]
    for one in errors:
        assert f"{one['local']:.3f}" in found.output
        assert f"{one['global_so_far']:.3f}" in found.output


def test_several_images_are_reported_apart(ask, tmp_path):
    picture(3).save(tmp_path / "second.png")
    found = ask("--image", tmp_path / "second.png", "--option", "per=image", "--keep", 0.5)
    assert found.exit_code == 0, found.output
    assert "8 of 16, 8 of 16" in found.output


def test_a_count_is_a_count(ask):
    assert "31.2 %" in ask("--keep", 5).output


def test_nothing_to_prune_is_said(ask, tmp_path):
    found = ask("--overlay", tmp_path / "kept.png", image=None)
    assert found.exit_code == 0, found.output
    assert "nothing was pruned: no visual token" in found.output
    assert not (tmp_path / "kept.png").exists()


def test_where_no_picture_can_be_drawn_the_reason_is_printed(ask, tmp_path, monkeypatch):
    from foveate.measure import overlay as grid

    def refuse(*_):
        raise grid.NoGridError("tiles")

    monkeypatch.setattr(grid, "image_grids", refuse)
    found = ask("--overlay", tmp_path / "kept.png")
    assert found.exit_code == 0, found.output
    assert "no image: tiles" in found.output


def in_one_line(found, *words):
    """An error for people: one line, exit code 2, no trace."""
    assert found.exit_code == 2, found.output
    lines = found.output.strip().splitlines()
    assert len(lines) == 1, found.output
    assert lines[0].startswith("foveate: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--method", "nope"), "greedyprune"),
        (("--option", "nope=1"), "threshold"),
        (("--option", "threshold"), "name=value"),
        (("--option", "layer=99"), "99"),
        (("--option", "layer=x"), "layer"),
        (("--keep", "0"), "keep"),
        (("--keep", "1"), "1.0"),
        (("--keep", "1.5"), "keep"),
        (("--keep", "-1"), "keep"),
        (("--keep", "nan"), "keep"),
        (("--keep", "many"), "keep"),
        (("--device", "nowhere"), "nowhere"),
        (("--dtype", "int8"), "bfloat16"),
    ],
)
def test_bad_options(ask, arguments, word):
    in_one_line(ask(*arguments), word)


def test_images_that_cannot_be_read(ask, tmp_path, image_file):
    in_one_line(ask(image=tmp_path / "none.png"), "none.png")
    in_one_line(ask(image=tmp_path), "cannot read")
    (tmp_path / "text.png").write_text("no image")
    in_one_line(ask(image=tmp_path / "text.png"), "not an image")
    (tmp_path / "cut.png").write_bytes(image_file.read_bytes()[:-900])
    in_one_line(ask(image=tmp_path / "cut.png"), "truncated")


def test_a_url_out_of_reach(ask):
    in_one_line(ask(image="http://127.0.0.1:9/image.png"), "http://127.0.0.1:9/image.png")


def test_a_url_that_holds_no_image(ask, monkeypatch):
    monkeypatch.setattr(images, "fetch", lambda url: b"<html>")
    in_one_line(ask(image="https://example.org/page"), "not an image")


def test_models_that_are_not_there(run, image_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rest = ("--image", image_file, "--prompt", "what ?")
    in_one_line(run("run", "--model", tmp_path / "none", *rest), "folder")
    in_one_line(run("run", "--model", tmp_path, *rest), str(tmp_path))


def test_a_hub_out_of_reach_is_asked_once(run, image_file, monkeypatch):
    """A closed port on this machine stands for a Hub that does not answer."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    in_one_line(run("run", "--model", "someone/something", "--image", image_file, "--prompt", "what ?"), "network")
    assert time.monotonic() - start < 20


def test_a_model_for_text_alone(run, image_file, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    in_one_line(run("run", "--model", tmp_path, "--image", image_file, "--prompt", "what ?"))


def test_a_family_that_is_not_supported_is_refused_before_its_weights_are_read(
    run, image_file, llava_folder, tmp_path
):
    for path in llava_folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "janus"}))
    in_one_line(run("run", "--model", tmp_path, "--image", image_file, "--prompt", "what ?"), "janus", "qwen3_vl")
