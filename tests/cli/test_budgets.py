"""A method and a budget mean the same in every command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from foveate import tiny
from foveate.pruners.spec import build
from tests.cli.test_run import in_one_line

ASK = ("run", "-p", "how many circles are there?", "-m")
EVALUATE = ("eval", "--samples", "2", "--methods")
BENCH = ("bench", "--device", "cpu", "--rounds", "1", "--decode", "0", "--threads", "1", "--methods")


@pytest.mark.parametrize(("method", "keep"), [("fastv", "49"), ("fastv", "1.0"), ("btp", "0.4")])
def test_the_same_pruner_and_as_many_tokens_in_every_command(run, tmp_path, method, keep):
    image, file = tmp_path / "image.png", tmp_path / "found.json"
    tiny.make_scene(np.random.default_rng(3)).pil().save(image)

    def found(*command):
        done = run(*command, "--keep", keep, "--json", file)
        assert done.exit_code == 0, done.output
        return json.loads(file.read_text())

    answered = found(*ASK, method, "-i", image)
    stages = answered["report"]["prefills"][0]["stages"]
    arm = found(*EVALUATE, method, "--out", tmp_path / "out")["arms"][-1]
    entry = found(*BENCH, method)["entries"][-1]
    assert answered["pruner"] == arm["pruner"] == entry["pruner"]
    assert [len(stage["kept"][0]) for stage in stages] == [stage["kept"] for stage in entry["stages"]]
    assert len(stages[-1]["kept"][0]) == arm["measured"]["visual_tokens"]
    if method == "fastv":
        assert len(stages[-1]["kept"][0]) == {"49": 49, "1.0": stages[0]["dense"][0]}[keep]


@pytest.mark.parametrize("keep", ["0", "1", "-2", "1.5", "49.0", "nan", "half"])
def test_what_is_no_budget_is_refused_in_the_same_words(run, keep):
    for command in (("run", "-p", "what?"), ("demo",), ("eval",), ("bench",)):
        in_one_line(run(*command, "--keep", keep), "keep", "1.0" if keep in ("1", "half") else keep)
    in_one_line(run("check", "--methods", f"fastv:keep={keep}"), "keep", "1.0" if keep in ("1", "half") else keep)


CHAIN = "divprune:keep=0.5+fastv:keep=0.3,layer=4"


def test_a_chain_is_the_same_in_every_command(run, tmp_path):
    image, file = tmp_path / "image.png", tmp_path / "found.json"
    tiny.make_scene(np.random.default_rng(3)).pil().save(image)

    def found(*command):
        done = run(*command, "--json", file)
        assert done.exit_code == 0, done.output
        return json.loads(file.read_text())

    answered = found(*ASK, CHAIN, "-i", image)
    arms = found(*EVALUATE, f"{CHAIN},random+fastv:layer=4", "--keep", "0.4", "--out", tmp_path / "out")["arms"]
    entry = found(*BENCH, CHAIN)["entries"][-1]
    assert answered["pruner"] == arms[-2]["pruner"] == entry["pruner"] == repr(build(CHAIN, {}))
    assert [len(stage["kept"][0]) for stage in answered["report"]["prefills"][0]["stages"]] == [128, 77]
    assert [stage["kept"] for stage in entry["stages"]] == [128, 77]
    assert arms[-1]["arm"] == "random+fastv:layer=4 @ 0.4"
    assert arms[-1]["measured"]["mean_tokens_per_layer"] == pytest.approx(0.4, abs=0.005)
    in_one_line(run(*ASK, CHAIN, "-i", image, "--keep", "0.2"), "given twice", "0.5")
    in_one_line(run("check", "--methods", "divprune+random"), "divprune and random both cut before layer 0")


@pytest.mark.parametrize(("budget", "wanted"), [("kv", "0.6"), ("flops", "0.7")])
def test_one_number_in_every_command(run, tmp_path, budget, wanted):
    image, file = tmp_path / "image.png", tmp_path / "found.json"
    tiny.make_scene(np.random.default_rng(3)).pil().save(image)
    given = ("--keep", wanted, "--budget", budget, "--json", file)

    def found(*command):
        done = run(*command, *given)
        assert done.exit_code == 0, done.output
        return json.loads(file.read_text()), done.output

    def share(entry):
        return entry["kv_share"] if budget == "kv" else entry["flops_pruned"] / entry["flops_dense"]

    answered, _ = found(*ASK, "btp", "-i", image)
    assert share(answered["report"]["prefills"][0]) == pytest.approx(float(wanted), abs=0.01)
    result, said = found(*EVALUATE, "pyramiddrop,fastv:layer=9", "--out", tmp_path / "out")
    assert "fastv:layer=9 @" in said
    assert "cannot be reached: it lies between" in said
    assert "For every method keep is the share of" in said
    arms = {arm["arm"]: arm for arm in result["arms"]}
    assert arms[f"pyramiddrop @ {wanted}"]["measured"][f"{budget}_share"] == pytest.approx(float(wanted), abs=0.01)
    assert f"fastv:layer=9 @ {wanted}" not in arms
    result, said = found(*BENCH, "fastv,fastv:layer=9")
    (entry,) = (one for one in result["entries"] if one["method"] == "fastv")
    flops = {f"flops_{name}": value for name, value in entry["flops_formula"].items()}
    assert share(entry | flops) == pytest.approx(float(wanted), abs=0.01)
    assert any(note.startswith("fastv:layer=9 @") and "left out, fastv: " in note for note in result["notes"])


def test_what_is_no_meaning_of_a_budget(run):
    for command in (("run", "-p", "what?"), ("demo",), ("eval",), ("bench",)):
        in_one_line(run(*command, "--budget", "ram"), "--budget is one of after, mean, kv, flops, got 'ram'")
        in_one_line(run(*command, "--budget", "flops", "--keep", "49"), "not the count 49")
    in_one_line(run("bench", "--predict", "--budget", "kv"), "leave --budget out")
    in_one_line(run(*ASK, "fastv", "--budget", "kv", "-o", "keep=0.3"), "given twice")
