import dataclasses
import json
from dataclasses import asdict

import pytest
import torch

import foveate
from foveate.errors import BudgetError, UnsupportedModelError
from foveate.learn import CalibrationError, CalibrationSettings, calibrate_btp, plots
from foveate.learn.btp import calibrate
from foveate.learn.btp import candidates as choice
from foveate.learn.btp.calibrate import PICTURE, RESULT, STATE
from foveate.learn.btp.curve import stages_from_curve
from foveate.learn.btp.divergence import dense_answer
from foveate.learn.btp.samples import from_folder, from_suite
from foveate.pruners.btp.method import BTPStage

pytestmark = pytest.mark.usefixtures("words_suite")
SETTINGS = CalibrationSettings(keep=0.4, stages=2, tau=0.9, batch_size=2, answer_tokens=2)


@pytest.fixture
def samples(words_suite):
    return from_suite("words", 5, 1000)


def without_command(result):
    return {key: value for key, value in result.items() if key != "command"}


def test_the_folder_holds_a_pruner_at_the_budget(loaded, samples, tmp_path):
    model = loaded.model
    dense_answer(loaded, samples.items[:1], 1)  # transformers hooks a model itself the first time that it runs
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    result = calibrate_btp(loaded, samples, SETTINGS, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()} == hooks
    pruner = foveate.load(tmp_path)
    assert isinstance(pruner, foveate.BTP)
    assert (pruner.keep, pruner.depth) == (0.4, 6)
    assert pruner.mean_tokens(6) == pytest.approx(0.4)
    assert [stage["layer"] for stage in result["chosen"]["stages"]] == list(pruner.layers(6))
    assert (pruner.final, pruner.harmless is not None) in [("auto", True), ("keep", False)]
    assert json.loads((tmp_path / RESULT).read_text()) == json.loads(json.dumps(result))
    with pytest.raises(BudgetError, match="6 layers"):
        pruner.layers(12)
    with pruner(model) as pruned:
        inputs = loaded.inputs([samples.items[0].question], [[samples.items[0].image()]])
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert len(pruned.report.prefills[0].stages) == len(pruner.layers(6))


def test_all_candidates_keep_the_same_mean(loaded, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "depth_of_harmless_drop", lambda *_: 5)
    result = calibrate_btp(loaded, samples, SETTINGS, tmp_path)
    assert len(result["heats"]) >= 8
    for one in result["heats"] + result["final"]:
        assert one["mean_tokens_per_layer"] == pytest.approx(0.4, abs=1e-4)
        assert one["kl"] >= 0
        assert one["error"] >= 0
    rounds = {one["round"] for one in result["heats"]}
    assert rounds == {"layers", "attention shares", "seed and rebalancing", "drop"}
    assert all(one["stages"][-1] == asdict(BTPStage(5, 0.0)) for one in result["heats"] if one["round"] == "drop")
    assert result["chosen"] in result["final"]
    drops = result["harmless"]["drop_before"]
    assert len(drops["kl"]) == len(drops["same"]) == 6


def test_the_papers_rule_takes_the_curves_jumps_and_compares_nothing(loaded, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "divergence", None)
    seen = []
    settings = dataclasses.replace(SETTINGS, rule="paper")
    result = calibrate_btp(loaded, samples, settings, tmp_path, progress=lambda what, *_: seen.append(what))
    assert set(seen) == {"curve"}
    pruner = foveate.load(tmp_path)
    turned = result["curve"]["turned"][f"{result['curve']['tau']:g}"]
    assert pruner.layers(6) == tuple(result["chosen"]["layers"]) == stages_from_curve(turned, 2)
    first, second = pruner.schedule(6)
    assert second.keep == pytest.approx(first.keep / 2, abs=1e-5)
    assert (first.attention, second.attention) == (0.6, 1.0)
    assert pruner.mean_tokens(6) == pytest.approx(0.4)
    assert pruner.final == "keep"
    assert result["harmless"] is None
    assert result["heats"] == []
    with pytest.raises(CalibrationError, match="rule must be measured or paper"):
        CalibrationSettings(rule="curve")


def test_a_drop_that_wins_is_in_the_pruner(loaded, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "depth_of_harmless_drop", lambda *_: 5)
    monkeypatch.setattr(
        choice, "choose", lambda found, layers: next((at for at, own in enumerate(layers) if own[-1] == 5), 0)
    )
    calibrate_btp(loaded, samples, SETTINGS, tmp_path)
    pruner = foveate.load(tmp_path)
    assert (pruner.final, pruner.harmless) == ("auto", 5)
    assert pruner.layers(6)[-1] == 5
    assert pruner.schedule(6)[-1].keep == 0


def test_final_keep_drops_nothing(loaded, samples, tmp_path):
    result = calibrate_btp(loaded, samples, dataclasses.replace(SETTINGS, final="keep"), tmp_path)
    assert foveate.load(tmp_path).final == "keep"
    assert all(stage["keep"] for one in result["heats"] for stage in one["stages"])


@pytest.mark.parametrize("stop", ["drops", "curve", "layers", "attention shares", "final"])
def test_an_interrupted_calibration_continues_to_the_same_result(loaded, samples, tmp_path, stop):
    whole = calibrate_btp(loaded, samples, SETTINGS, tmp_path / "whole")

    def interrupt(what, done, total):
        if what == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_btp(loaded, samples, SETTINGS, tmp_path / "parts", progress=interrupt)
    assert not (tmp_path / "parts" / RESULT).exists()
    seen = []
    continued = calibrate_btp(
        loaded, samples, SETTINGS, tmp_path / "parts", progress=lambda what, done, total: seen.append((what, done))
    )
    assert without_command(continued) == without_command(whole)
    assert seen[0] == (stop, 4)  # the first batch of two was not measured again
    assert foveate.load(tmp_path / "parts") == foveate.load(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"keep": 0.5}, {"tau": 0.8}, {"stages": 3}, {"batch_size": 3}, {"seed": 1}])
def test_another_configuration_is_refused(loaded, samples, tmp_path, change):
    def interrupt(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_btp(loaded, samples, SETTINGS, tmp_path, progress=interrupt)
    with pytest.raises(CalibrationError, match=next(iter(change))):
        calibrate_btp(loaded, samples, dataclasses.replace(SETTINGS, **change), tmp_path)


def test_fresh_starts_over(loaded, samples, tmp_path):
    calibrate_btp(loaded, samples, SETTINGS, tmp_path)
    other = dataclasses.replace(SETTINGS, keep=0.5)
    calibrate_btp(loaded, samples, other, tmp_path, fresh=True)
    assert foveate.load(tmp_path).keep == 0.5


def test_a_file_that_is_no_state_is_left_alone(loaded, samples, tmp_path):
    (tmp_path / STATE).write_text("notes\n")
    with pytest.raises(CalibrationError, match="not the state"):
        calibrate_btp(loaded, samples, SETTINGS, tmp_path)
    assert (tmp_path / STATE).read_text() == "notes\n"


def test_the_state_does_not_grow_with_the_samples(loaded, tmp_path):
    for number in (4, 12):
        calibrate_btp(loaded, from_suite("words", number, 0), SETTINGS, tmp_path / str(number))
    shapes = [
        {
            name: {key: torch.tensor(value).shape for key, value in entry["sums"].items()}
            for name, entry in json.loads((tmp_path / number / STATE).read_text())["passes"].items()
        }
        for number in ("4", "12")
    ]
    assert shapes[0]["curve"].keys() >= {"curve under", "curve cosine"}
    assert shapes[0]["layers"] == shapes[1]["layers"]


def test_a_budget_out_of_reach(loaded, samples, tmp_path):
    from foveate.learn.btp import candidates

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "layer_sets", lambda *_: {"late": (4, 5)})
        with pytest.raises(BudgetError, match="no candidate reaches a mean of 40.0%"):
            calibrate_btp(loaded, samples, SETTINGS, tmp_path)
    with pytest.raises(BudgetError):
        CalibrationSettings(keep=1.0)


def test_a_model_without_known_parts(loaded, samples, tmp_path):
    strange = dataclasses.replace(loaded, model=torch.nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError):
        calibrate_btp(strange, samples, SETTINGS, tmp_path)


def test_prompts_without_images(loaded, samples, tmp_path, monkeypatch):
    inputs = type(loaded).inputs
    monkeypatch.setattr(
        type(loaded), "inputs", lambda self, questions, images: inputs(self, questions, [[] for _ in images])
    )
    with pytest.raises(CalibrationError, match="no visual token|has a visual token"):
        calibrate_btp(loaded, samples, SETTINGS, tmp_path)


def test_a_folder_of_images(loaded, pictures, tmp_path):
    result = calibrate_btp(loaded, from_folder(pictures, 3, 1), SETTINGS, tmp_path / "out")
    assert result["configuration"]["from"] == str(pictures)
    assert foveate.load(tmp_path / "out").depth == 6


def test_a_picture_where_matplotlib_is(loaded, samples, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    result = calibrate_btp(loaded, samples, SETTINGS, tmp_path)
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert not plots.draw_calibration(result, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("wrong", [{"tolerance": -1.0}, {"tolerance": float("nan")}, {"agreement": 1.5}], ids=str)
def test_a_harmless_drop_that_could_never_be(wrong):
    with pytest.raises(CalibrationError, match=next(iter(wrong))):
        CalibrationSettings(**wrong)
