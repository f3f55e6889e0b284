"""The search for a setting: planted optima, bounds, and a whole run on a random model."""

import json
import math

import numpy as np
import pytest

import foveate
from foveate import BTP
from foveate.errors import FoveateError, UnsupportedModelError
from foveate.learn.tune.measure import Calibration, controls, make_candidates
from foveate.learn.tune.search import (
    Candidate,
    Goal,
    Speed,
    Trial,
    TuneError,
    least_questions,
    pareto,
    rungs,
    search,
    upper_bound,
)
from foveate.measure.loading import load_model
from foveate.pruners.spec import MethodSpec, parse_methods
from tests.measure.folders import save_llava

METHODS = ("good", "poor", "slow")
KEEPS = (0.5, 0.4, 0.33, 0.28, 0.22, 0.16, 0.11, 0.05)


class Planted:
    """Every `good` setting from keep 0.28 on loses nothing, and the smaller the budget, the faster."""

    def __init__(self, seed=0, loses=lambda method, keep: 0.0, noise=0.03):
        self.draw = np.random.default_rng(seed)
        self.loses, self.noise = loses, noise
        self.asked, self.timed, self.refused = {}, [], ()

    def time(self, candidate, rounds):
        self.timed.append((candidate.label, rounds))
        method, keep = candidate.spec.name, candidate.keep or 0.3
        middle = 0.9 if method == "slow" else 1 / (0.2 + 0.8 * keep)
        middle *= 1 + self.noise * (self.draw.random() - 0.5)
        times = {"median": middle, "q25": 0.98 * middle, "q75": 1.02 * middle}
        return Speed({key: 2 * value for key, value in times.items()}, times)

    def losses(self, candidate, first, last):
        if candidate.label in self.refused:
            raise UnsupportedModelError("not this one")
        self.asked[candidate.label] = self.asked.get(candidate.label, 0) + last - first
        chance = self.loses(candidate.spec.name, candidate.keep or 0.3)
        changed = self.draw.random(last - first)
        # changes both ways happen by chance, too
        return np.where(changed < chance + 0.01, 1.0, np.where(changed > 0.99, -1.0, 0.0)), candidate.keep or 0.3


def planted_loss(method, keep):
    return {"good": 0.0 if keep >= 0.28 else 0.3, "poor": 0.15, "slow": 0.0}[method]


def grid(methods=METHODS):
    return [Candidate(MethodSpec(method), keep) for method in methods for keep in KEEPS]


@pytest.mark.parametrize("seed", range(8))
def test_a_planted_optimum_is_found(seed):
    measurement = Planted(seed, planted_loss)
    found = search(grid(), measurement, Goal(max_loss=0.04), 800, batch=8)
    assert found.winner.candidate.label == "good @ 0.28"
    assert found.why is None
    assert len(found.winner.losses) == 800
    assert not any(label.startswith("slow") for label in measurement.asked)
    # half of the settings at each rung, the rest never asked everything
    assert sum(measurement.asked.values()) < 0.4 * 800 * 16
    assert sum(asked == 800 for asked in measurement.asked.values()) <= 4


def test_the_one_that_loses_least_where_speed_is_given():
    found = search(grid(), Planted(1, planted_loss), Goal(min_speedup=2.0), 800, batch=8)
    assert found.winner.candidate.label in ("good @ 0.33", "good @ 0.28")
    assert found.winner.factor(found_goal := Goal(min_speedup=2.0), "q25") >= 2.0
    assert all(trial.factor(found_goal, "q75") > 2 for trial in found.finalists)


def test_a_small_cache_may_be_slow():
    found = search(grid(("slow",)), Planted(1, planted_loss), Goal(max_kv=0.3), 160)
    assert found.winner.kv_share <= 0.3
    outs = [trial.out for trial in found.trials if trial.candidate.keep > 0.3]
    assert all(out.startswith("too much in the KV cache") for out in outs)
    both = Goal(max_kv=0.3, min_speedup=1.0)
    assert search(grid(("slow",)), Planted(1, planted_loss), both, 160).winner is None


def test_nothing_beats_dense():
    found = search(grid(("poor",)), Planted(0, planted_loss), Goal(max_loss=0.02), 400)
    assert found.winner is None
    assert "at most 2 % is wanted" in found.why
    found = search(grid(("slow",)), Planted(0, planted_loss), Goal(max_loss=0.02), 400)
    assert found.winner is None
    assert "too slow" in found.why
    # nothing lost at all, but too few questions to say so
    none = Planted(0, lambda *_: -1.0)
    none.losses = lambda candidate, first, last: (np.zeros(last - first), 0.3)
    found = search(grid(("good",)), none, Goal(max_loss=0.01), 100)
    assert found.winner is None
    assert f"takes {least_questions(0.01, 0.95, 4)} questions" in found.why


def test_a_move_joins_after_the_first_rung_and_may_win():
    seen = []

    def moves(left):
        seen.append([trial.candidate.label for trial in left])
        return [Candidate(MethodSpec("good"), 0.3), Candidate(MethodSpec("better"))]

    measurement = Planted(2, lambda method, keep: 0.0 if method == "better" else planted_loss(method, keep))
    measurement.time = lambda candidate, rounds, own=measurement.time: (
        Speed({"median": 9, "q25": 9, "q75": 9}, {"median": 9, "q25": 9, "q75": 9})
        if candidate.spec.name == "better"
        else own(candidate, rounds)
    )
    found = search(grid(), measurement, Goal(max_loss=0.04), 800, batch=8, moves=moves)
    assert len(seen) == 1
    assert len(seen[0]) == 16
    assert found.winner.candidate.label == "better"


def test_what_cannot_be_measured_is_left_out_with_why():
    measurement = Planted(0, planted_loss)
    measurement.refused = ("good @ 0.28",)
    found = search(grid(("good",)), measurement, Goal(max_loss=0.04), 800)
    (refused,) = [trial for trial in found.trials if trial.candidate.keep == 0.28]
    assert refused.out == "cannot be measured: not this one"
    assert found.winner.candidate.label == "good @ 0.33"


def test_the_bound_covers():
    """The true loss is over the bound of any of four settings in at most five of a hundred searches."""
    draw = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        losses = draw.choice([1.0, 0.0, -1.0], p=[0.04, 0.95, 0.01], size=(4, 200))
        missed += any(upper_bound(own, 0.95, 4) < 0.03 for own in losses)
    assert missed <= 0.05 * 400 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_the_bound_of_no_loss_is_not_none():
    assert upper_bound(np.zeros(198), 0.95) == pytest.approx(1.645 * math.sqrt(2) / 200, rel=1e-3)
    needed = least_questions(0.01, 0.95, 1)
    assert upper_bound(np.zeros(needed), 0.95) <= 0.01 < upper_bound(np.zeros(needed - 1), 0.95)


def test_rungs():
    assert rungs(200) == [25, 50, 100, 200]
    assert rungs(200, 8) == [32, 56, 104, 200]
    assert rungs(5, 8) == [5]


def test_the_front():
    def trial(speed, loss):
        return Trial(Candidate(MethodSpec(f"m{speed}")), Speed({}, {"median": speed}), np.array([loss]))

    found = pareto([trial(3, 0.3), trial(2, 0.1), trial(2.5, 0.4), trial(1, 0.1), trial(1.5, 0.0)], Goal(max_loss=0.1))
    assert [one.candidate.spec.name for one in found] == ["m3", "m2", "m1.5"]


@pytest.mark.parametrize(
    "wrong",
    [{}, {"max_loss": 0.0}, {"max_loss": 1.0}, {"min_speedup": 0.9}, {"max_kv": 0.0}, {"max_loss": 0.1, "speed": "x"}],
)
def test_goals_that_mean_nothing(wrong):
    with pytest.raises(TuneError):
        Goal(**wrong)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(str(save_llava(tmp_path_factory.mktemp("llava"))), device="cpu")


def test_settings_of_methods_budgets_and_stages(loaded):
    config = loaded.model.config
    found, out = make_candidates(parse_methods("fastv,random:layer=0,btp"), (0.5, 4), None, config)
    labels = [candidate.label for candidate in found]
    depth = config.get_text_config().num_hidden_layers
    assert {"fastv @ 0.5", "fastv @ 4", f"fastv:layer={depth // 4} @ 0.5", "random:layer=0 @ 4"} <= set(labels)
    assert [label for label in labels if label.startswith("random")] == ["random:layer=0 @ 0.5", "random:layer=0 @ 4"]
    assert "btp @ 0.5" in labels
    found, out = make_candidates(parse_methods("fastv"), (0.5,), (1, 99), config)
    assert [candidate.label for candidate in found] == ["fastv:layer=1 @ 0.5"]
    assert len(out) == 1
    assert "99" in out[0]
    with pytest.raises(TuneError, match="--keep"):
        make_candidates(parse_methods("fastv:keep=0.5"), (0.5,), None, config)


@pytest.fixture
def quick_calibration(monkeypatch):
    """The calibration itself, which takes a while, has tests of its own."""

    def calibrate(loaded, samples, settings, folder, progress=None):
        assert len(samples.items) == 2
        BTP(keep=settings.keep, stages=[(1, 0.6, 0.4), (2, 0.3, 1.0)]).save_pretrained(folder)

    monkeypatch.setattr("foveate.learn.tune.measure.calibrate_btp", calibrate)


def test_calibration_is_a_move(loaded, tmp_path, quick_calibration):
    from tests.measure.folders import questions

    move = Calibration(loaded, questions(2, 9), "words", tmp_path, 2)
    fastv = Trial(Candidate(MethodSpec("fastv"), 0.5))
    assert move([fastv]) == []
    (made,) = move([fastv, Trial(Candidate(MethodSpec("btp"), 0.5)), Trial(Candidate(MethodSpec("btp"), 0.3))])
    pruner = foveate.load(made.label)
    assert pruner.keep == 0.5
    assert pruner.stages
    assert made.keep is None


def test_controls_are_at_the_stage_and_budget(loaded):
    config = loaded.model.config
    arms = controls(Candidate(MethodSpec("fastv", {"layer": 1}), 0.5), config)
    assert [arm.label for arm in arms] == ["random:layer=1 @ 0.5", "downsample @ 0.5"]
    (random, _) = controls(Candidate(MethodSpec("btp"), 0.5), config)
    assert random.config is config


@pytest.fixture
def tuned(loaded, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from foveate.cli import app
    from foveate.measure.eval import suites
    from tests.measure.folders import questions

    monkeypatch.setattr(suites, "SUITES", {"words": questions})

    def invoke(*arguments):
        few = ("--suite", "words", "--samples", "8", "--batch-size", "4", "--max-new-tokens", "2", "--calibrate", "2")
        own = ("--model", loaded.name, "--out", str(tmp_path / "out"), "--rounds", "1", "--device", "cpu")
        return CliRunner().invoke(app, ["tune", *own, *few, *map(str, arguments)])

    return invoke


def test_from_the_command_line_to_a_folder(tuned, tmp_path, monkeypatch, quick_calibration):
    from foveate.learn.tune.measure import ModelMeasurement

    fast = {"median": 2.0, "q25": 2.0, "q75": 2.0}
    monkeypatch.setattr(ModelMeasurement, "time_arm", lambda *_: Speed(fast, fast))
    found = tuned("--methods", "fastv:layer=1,random:layer=1,btp", "--keep", "0.5", "--max-loss", "90%")
    assert found.exit_code == 0, found.output
    result = json.loads((tmp_path / "out" / "tune.json").read_text())
    pruner = foveate.load(str(tmp_path / "out" / "winner"))
    assert repr(pruner) == result["winner"]["pruner"]
    assert "winner: " in found.output
    assert result["winner"]["setting"] in result["front"] or result["trials"][0]["questions"] == 8
    assert any("btp-0.5" in trial["setting"] for trial in result["trials"])  # calibrated
    assert [one["setting"] for one in result["controls"]][-1] == "downsample @ 0.5"
    for trial in result["trials"]:
        assert trial["questions"] == 8
        assert trial["lost"] + trial["gained"] <= 8
    # a finished run asks nothing again
    monkeypatch.setattr("foveate.learn.tune.measure.answer_batch", lambda *_: pytest.fail("asked again"))
    assert tuned("--methods", "fastv:layer=1,random:layer=1,btp", "--keep", "0.5", "--max-loss", "90%").exit_code == 0


def test_own_data(loaded, tmp_path, monkeypatch):
    """Scored against the truth where it is known, else against the dense answer; by the metric that is named."""
    from foveate.learn.tune.measure import ModelMeasurement
    from foveate.learn.tune.run import TuneSettings, own_questions, tune
    from foveate.measure.eval.data.questions import DataSettings
    from foveate.measure.eval.metrics import MetricError, parse_metrics
    from tests.measure.folders import picture

    fast = {"median": 2.0, "q25": 2.0, "q75": 2.0}
    monkeypatch.setattr(ModelMeasurement, "time_arm", lambda *_: Speed(fast, fast))
    rows = []
    for at in range(6):
        picture(at).save(tmp_path / f"{at}.png")
        rows.append({"image": f"{at}.png", "query": "what is this ?", "answer": "word1"})
    settings = TuneSettings(Goal(max_loss=0.9), parse_methods("fastv:layer=1"), (0.5,), None, 4, 2, 1)
    found = {}
    for name, own, metric in (
        ("plain", rows, ()),
        ("dense", [dict(row, answer=None) for row in rows], ("agreement",)),
    ):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
        data = DataSettings(str(tmp_path / f"{name}.jsonl"), ("question=query",))
        asked = own_questions(data, parse_metrics(metric), 0, tmp_path, 2)
        assert len(asked.examples) == 6
        assert len(asked.calibration) == 2
        found[name] = tune(loaded, asked, settings, tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / "answers.jsonl").read_text().splitlines()[1:]]
        scores = {(line["arm"], line["index"]): line["score"] for line in lines}
        dense = {line["index"]: line["answer"] for line in lines if line["arm"] == "dense"}
        for line in lines:
            truth = "word1" if name == "plain" else dense[line["index"]]
            assert scores[line["arm"], line["index"]] == (line["answer"].strip().lower() == truth.strip().lower())
    assert found["dense"]["configuration"]["questions_of"] == "dense.jsonl"
    with pytest.raises(MetricError, match="compare texts"):
        own_questions(data, parse_metrics(["same-tokens"]), 0, tmp_path, 2)


def test_it_says_that_nothing_beats_dense(tuned, tmp_path):
    found = tuned("--methods", "fastv:layer=1", "--keep", "0.5", "--max-loss", "1%")
    assert found.exit_code == 0, found.output
    assert "NOTHING BEATS DENSE" in found.output
    assert not (tmp_path / "out" / "winner").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--max-loss"),
        (("--max-loss", "some"), "some"),
        (("--max-loss", "0"), "--max-loss"),
        (("--max-loss", "1%", "--methods", "nope"), "nope"),
        (("--max-loss", "1%", "--keep", "0"), "0"),
        (("--max-loss", "1%", "--suite", "nope"), "words"),
        (("--max-loss", "1%", "--layers", "x"), "x"),
    ],
)
def test_bad_options_are_one_line(tuned, arguments, word):
    from tests.cli.test_run import in_one_line

    in_one_line(tuned(*arguments), word)


def test_the_error_is_ours():
    assert issubclass(TuneError, FoveateError)
