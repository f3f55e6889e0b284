"""A method and a budget mean the same in every command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from foveate import tiny
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
