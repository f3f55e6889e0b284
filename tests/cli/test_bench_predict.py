"""`foveate bench --predict`, with made-up rates: no test looks at a clock."""

import json

import pytest
from transformers import AutoConfig

from foveate import GreedyPrune, Random
from foveate.measure.bench.published_shapes import shape_named
from foveate.measure.predict import selection as choosing
from foveate.measure.predict.predict import break_even, predict
from foveate.measure.predict.rates import RateCurve, Rates
from foveate.tiny.model import WEIGHTS

ARMS = {"random @ 0.3": Random(keep=0.3), "greedyprune @ 0.3": GreedyPrune(keep=0.3)}


@pytest.fixture
def rates(tmp_path):
    """Rates in a file, and what a setting of the embedded model or of a shape costs by them."""
    shape = shape_named("qwen2.5-vl-7b").resized(4, 256)
    configs = [AutoConfig.from_pretrained(WEIGHTS).get_text_config(), shape.config().get_text_config()]
    keys = [choosing.key(one, config, batch) for one in ARMS.values() for config in configs for batch in (1, 2)]
    names = ("linear", "attention", "pointwise", "bandwidth")
    curves = {name: RateCurve(((1, 1e9), (1000, 1e11))) for name in names}
    made = Rates("cpu", "float32", **curves, overhead=1e-6, choosing=dict.fromkeys(keys, RateCurve(((1, 1e-4),))))
    made.save(tmp_path / "rates.json")
    return made


def bench(run, folder, *arguments):
    found = run(
        "bench", "--methods=greedyprune", "--keep=0.3", "--predict", f"--rates={folder / 'rates.json'}", *arguments
    )
    return found, folder / "out.json"


def test_a_prediction_from_the_config_alone(run, tmp_path, rates, monkeypatch):
    monkeypatch.setattr("foveate.tiny.load", None)  # no weights
    found, out = bench(run, tmp_path, "--visual=256", "--text=20", f"--json={tmp_path / 'out.json'}")
    assert found.exit_code == 0, found.output
    assert "PREDICTED" in found.stdout
    result = json.loads(out.read_text())
    config = AutoConfig.from_pretrained(WEIGHTS)
    assert [entry["arm"] for entry in result["entries"]] == list(ARMS)
    for entry, pruner in zip(result["entries"], ARMS.values(), strict=True):
        expected = predict(config, pruner, 256, rates, text=20)
        assert entry["speedup"] == pytest.approx(expected.speedup)
        assert entry["break_even"] == break_even(config, pruner, rates, text=20)
        assert f"{expected.speedup:.2f} |" in found.stdout


def test_a_shape_at_several_lengths_and_batches(run, tmp_path, rates):
    sizes = ("--random-weights=qwen2.5-vl-7b", "--layers=4", "--width=256", "--visual=64,256", "--batch=1,2")
    found, out = bench(run, tmp_path, *sizes, f"--json={tmp_path / 'out.json'}")
    assert found.exit_code == 0, found.output
    entries = json.loads(out.read_text())["entries"]
    assert {(entry["visual"], entry["batch"]) for entry in entries} == {(64, 1), (64, 2), (256, 1), (256, 2)}
    assert {entry["arm"] for entry in entries} == set(ARMS)


def test_predicted_beside_measured(run, tmp_path, rates):
    found, out = bench(
        run, tmp_path, "--measure", "--rounds=1", "--decode=1", "--threads=1", f"--json={tmp_path / 'out.json'}"
    )
    assert found.exit_code == 0, found.output
    result = json.loads(out.read_text())
    rows = {row["arm"]: row for row in result["predicted"]["beside"]}
    assert set(rows) == set(ARMS)
    measured = {entry["arm"]: entry["prefill"]["faster"]["median"] for entry in result["entries"] if entry["prefill"]}
    alone = {entry["arm"]: entry["speedup"] for entry in result["predicted"]["entries"]}
    for arm, row in rows.items():
        assert row["prefill"]["measured"] == measured[arm]
        assert row["kv"]["predicted"] == pytest.approx(row["kv"]["measured"])
        assert 1 < row["prefill"]["predicted"] < alone[arm]  # the vision encoder is in the time


@pytest.mark.parametrize("wrong", [["--measure"], ["--rates=x.json"], ["--predict", "--check"]])
def test_options_that_do_not_go_together(run, wrong):
    found = run("bench", *wrong)
    assert found.exit_code == 2
    assert "--predict" in found.stderr


def test_rates_of_another_machine_lack_a_method(run, tmp_path, rates):
    found, _ = bench(run, tmp_path, "--methods=divprune")
    assert found.exit_code == 2
    assert "not the machine" in found.stderr
