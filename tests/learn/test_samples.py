import pytest

from foveate import tiny
from foveate.learn.btp.samples import DESCRIBE, from_folder, from_suite
from foveate.learn.errors import CalibrationError
from foveate.measure.eval import suites as suite
from tests.measure.folders import questions


def test_a_folder_of_images(pictures):
    found = from_folder(pictures, 5, 0)
    assert {sample.source.name for sample in found.items} == {"a.png", "b.jpg", "c.PNG", "d.bmp", "e.webp"}
    assert {sample.question for sample in found.items} == {DESCRIBE}
    assert all(sample.image().mode == "RGB" for sample in found.items)


def test_the_draw_depends_on_the_seed_alone(pictures):
    draws = {tuple(sample.source.name for sample in from_folder(pictures, 3, seed).items) for seed in [0, 0, 1, 2, 3]}
    assert 1 < len(draws) < 5
    assert from_folder(pictures, 3, 1).fingerprint == from_folder(pictures, 3, 1).fingerprint


def test_too_few_images(pictures):
    with pytest.raises(CalibrationError, match="holds 5"):
        from_folder(pictures, 6, 0)


def test_no_images(tmp_path):
    with pytest.raises(CalibrationError, match="holds none"):
        from_folder(tmp_path, 2, 0)
    with pytest.raises(CalibrationError, match="no folder"):
        from_folder(tmp_path / "nowhere", 2, 0)


def test_a_broken_image_is_named(pictures):
    whole = (pictures / "a.png").read_bytes()
    (pictures / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CalibrationError, match="a.png"):
        from_folder(pictures, 5, 0)


def test_a_suite_with_fewer_samples(monkeypatch):
    monkeypatch.setattr(suite, "SUITES", {"words": lambda samples, seed: questions(3, seed)})
    with pytest.raises(CalibrationError, match="has 3"):
        from_suite("words", 4, 0)


def test_calibration_asks_nothing_that_the_evaluation_asks():
    from inspect import signature

    from foveate.cli.calibrate import btp
    from foveate.cli.eval import eval_

    seeds = [signature(command).parameters["seed"].default for command in (btp, eval_)]
    calibration, evaluation = ({scene.pil().tobytes() for scene, _ in tiny.held_out(18, seed=seed)} for seed in seeds)
    assert not calibration & evaluation
