"""`foveate calibrate btp`, on a small random model and on the embedded one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import foveate
from foveate.learn.btp.calibrate import PICTURE, RESULT
from foveate.tiny.model import WEIGHTS
from tests.measure.folders import picture

WEIGHTS_HERE = pytest.mark.skipif(not (WEIGHTS / "model.safetensors").is_file(), reason="no weights in this checkout")
SMALL = ("--samples", 4, "--keep", "0.4", "--stages", 2, "--batch-size", 2, "--answer-tokens", 1, "--device", "cpu")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        picture(number).save(folder / f"{number}.png")
    return folder


def test_a_folder_of_images(run, llava_folder, pictures, tmp_path):
    found = run(
        "calibrate", "btp", "--model", llava_folder, "--images", pictures, "--out", tmp_path / "out", *SMALL,
        "--json", tmp_path / "copy.json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    result = json.loads((tmp_path / "out" / RESULT).read_text())
    assert json.loads((tmp_path / "copy.json").read_text()) == result
    assert "Measured on all samples" in found.output
    assert foveate.load(tmp_path / "out").depth == result["depth"] == 6


def test_the_papers_rule(run, llava_folder, pictures, tmp_path):
    found = run(
        "calibrate", "btp", "--model", llava_folder, "--images", pictures, "--out", tmp_path / "out", *SMALL,
        "--rule", "paper",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "KL" not in found.output
    assert "selected:" in found.output
    assert foveate.load(tmp_path / "out").layers(6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --images"),
        (["--suite", "scenes", "--images", "."], "either --images"),
        (["--suite", "nope"], "no suite 'nope'"),
        (["--images", "nowhere"], "no folder nowhere"),
        (["--suite", "scenes", "--keep", "1.5"], "over 0 and under 1"),
        (["--suite", "scenes", "--final", "drop"], "auto or keep"),
        (["--suite", "scenes", "--tau", "2"], "tau is a cosine"),
        (["--suite", "scenes", "--rule", "curve"], "measured or paper"),
    ],
)
def test_errors_take_one_line(run, tmp_path, options, message):
    found = run("calibrate", "btp", "--out", tmp_path, *options)
    assert found.exit_code == 2
    assert message in found.output
    assert "Traceback" not in found.output


def test_an_unreadable_image_is_named(run, llava_folder, pictures, tmp_path):
    (pictures / "3.png").write_bytes(b"no image")
    found = run(
        "calibrate", "btp", "--model", llava_folder, "--images", pictures, "--out", tmp_path, *SMALL, "--samples", 5
    )
    assert found.exit_code == 2
    assert "3.png" in found.output


def test_without_matplotlib_there_is_a_line_and_no_picture(run, llava_folder, pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found = run("calibrate", "btp", "--model", llava_folder, "--images", pictures, "--out", tmp_path / "out", *SMALL)
    assert found.exit_code == 0, found.output
    assert "no figure: matplotlib is not installed" in found.output
    assert not (tmp_path / "out" / PICTURE).exists()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(llava_folder, pictures, tmp_path):
    """Three batches for two processes, so that one of them has none in the last round."""
    pytest.importorskip("accelerate")
    results = {}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no"]  # the launcher that needs no MPI
    for name, start in {"one": [sys.executable], "two": launch}.items():
        command = [
            *start, "-m", "foveate", "calibrate", "btp", "--model", str(llava_folder), "--images", str(pictures),
            "--out", str(tmp_path / name), *map(str, SMALL), "--samples", "5",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
        found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
        assert found.returncode == 0, found.stderr[-2000:]
        results[name] = json.loads((tmp_path / name / RESULT).read_text())
    assert [results[name]["machine"]["processes"] for name in ("one", "two")] == [1, 2]
    assert [stage["layer"] for stage in results["one"]["chosen"]["stages"]] == [
        stage["layer"] for stage in results["two"]["chosen"]["stages"]
    ]
    for key in ("kl", "error", "same"):
        ones, twos = ([one[key] for one in results[name]["heats"]] for name in ("one", "two"))
        assert ones == pytest.approx(twos, rel=1e-9, abs=1e-12)
    assert foveate.load(tmp_path / "one") == foveate.load(tmp_path / "two")


@WEIGHTS_HERE
def test_the_embedded_model(run, tmp_path):
    """A handful of samples, as a user's first try would be; the pruner must work, not be the best."""
    found = run(
        "calibrate", "btp", "--suite", "scenes", "--samples", 4, "--answer-tokens", 2, "--out", tmp_path,
        "--device", "cpu",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    pruner = foveate.load(tmp_path)
    from foveate.measure.eval.answers import run_batch
    from foveate.measure.eval.suites import load_suite
    from foveate.measure.loading import load_model

    examples = load_suite("scenes", 2, 0)
    batch = run_batch(
        load_model("tiny", "cpu"), [one.question for one in examples], [[one.image] for one in examples], pruner
    )
    assert batch.report.mean_tokens_per_layer == pytest.approx(0.22, abs=0.01)


@WEIGHTS_HERE
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_same_samples_choose_the_committed_stages(tmp_path):
    from foveate.learn import CalibrationSettings, calibrate_btp
    from foveate.learn.btp.samples import from_suite
    from foveate.measure.loading import load_model

    loaded = load_model("tiny", "cpu")
    result = calibrate_btp(loaded, from_suite("scenes", 64, 1000), CalibrationSettings(batch_size=32), tmp_path)
    assert result["curve"]["samples"] == 64
    committed = foveate.load(Path(__file__).parents[2] / "benchmarks" / "results" / "btp_calibration_64")
    assert foveate.load(tmp_path).layers(result["depth"]) == committed.layers(result["depth"])
