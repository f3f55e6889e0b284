import dataclasses
import json
import time
from typing import ClassVar

import pytest
import torch

from foveate.cli import app
from foveate.measure.bench import run as module
from foveate.pruners import METHODS, Random, registry
from tests.cli.test_run import in_one_line

SMALL = ("--random-weights", "qwen2.5-vl-7b", "--layers", "4", "--width", "128", "--text", "12", "--visual", "96")
FAST = ("--threads", "1", "--rounds", "2", "--decode", "1", "--device", "cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow(Random):
    """Takes its time, and memory."""

    name: ClassVar[str] = "slow"

    def choose(self, tokens, k):
        torch.empty(1 << 26, dtype=torch.uint8)
        until = time.process_time() + 0.25
        while time.process_time() < until:
            pass
        return super().choose(tokens, k)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One run of the command, with a method that is slow."""
    from typer.testing import CliRunner

    folder = tmp_path_factory.mktemp("bench")
    known = {**METHODS, "slow": Slow}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "METHODS", known)
        files = ("--json", str(folder / "b.json"), "--plot", str(folder / "b.png"), "--check")
        methods = ("--methods", "slow,glimpseprune,btp:variant=paper", "--keep", "0.5")
        done = CliRunner().invoke(app, ["bench", *SMALL, *FAST, *methods, *files])
    return done, json.loads((folder / "b.json").read_text()), folder


def test_the_check_fails_for_what_is_slower_and_larger(found):
    done, data, _ = found
    assert done.exit_code == 1, done.output
    failed = {(failure["arm"], failure["what"]) for failure in data["check"]["failures"]}
    assert {("slow @ 0.5", "prefill"), ("slow @ 0.5", "memory")} <= failed
    assert not any(arm.startswith(("dense", "smaller")) for arm, _ in failed)
    assert "FAILED: 96 visual tokens, batch 1, slow @ 0.5: prefill is slower than dense" in done.output


def test_what_is_in_the_result(found):
    done, data, folder = found
    assert data["format"] == "foveate-bench-1"
    assert data["clock"] == "cpu"
    assert data["model"]["resized"] == {"layers": "4 of 28", "width": "128 of 3584"}
    assert {"command", "machine", "versions", "settings"} <= data.keys()
    entries = {entry["arm"]: entry for entry in data["entries"]}
    assert list(entries) == [
        "dense",
        "dense again",
        "smaller picture @ 0.5",
        "random @ 0.5",
        "slow @ 0.5",
        "glimpseprune @ 0.5",
        "btp:variant=paper",
    ]
    dense, random = entries["dense"], entries["random @ 0.5"]
    assert dense["visual"] == random["visual"] == 96
    assert entries["smaller picture @ 0.5"]["visual"] == 48
    assert random["implied"] == dense["flops"] / random["flops"] > 1
    assert random["kv_bytes"] == pytest.approx(dense["kv_bytes"] * (48 + 12) / (96 + 12))
    assert random["realised_to_implied"] == pytest.approx(random["prefill"]["faster"]["median"] / random["implied"])
    assert random["stages"] == [{"layer": 0, "kept": 48.0}]
    assert entries["slow @ 0.5"]["peak_bytes"] >= 1 << 26
    assert entries["slow @ 0.5"]["parts"]["ms"]["choosing"] > 200
    assert (folder / "b.png").stat().st_size > 10_000
    for label in entries:
        assert f"| {label} " in done.output
    assert "layers 4 of 28, width 128 of 3584" in done.output


def test_the_check_holds_where_nothing_is_slower(found, run, monkeypatch):
    _, data, _ = found
    fine = {**data, "check": {**data["check"], "failures": []}}
    monkeypatch.setattr(module, "run", lambda *_: fine)
    done = run("bench", *SMALL, *FAST, "--methods", "random", "--check")
    assert done.exit_code == 0, done.output
    assert "nothing is slower or larger than dense" in done.output


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--random-weights", "nope"), "llava-1.6-7b"),
        (("--random-weights", "llava-1.5-7b", "--model", "tiny"), "not both"),
        (("--random-weights", "llava-1.5-7b", "--layers", "1"), "2 to 32"),
        (("--random-weights", "llava-1.5-7b", "--width", "100"), "multiple of 128"),
        (("--layers", "2"), "--random-weights"),
        (("--keep", "nan"), "nan"),
        (("--keep", "0"), "positive"),
        (("--visual", "0"), "visual"),
        (("--visual", "many"), "many"),
        (("--batch", "-1"), "batch"),
        (("--rounds", "0"), "rounds"),
        (("--methods", "nope"), "nope"),
        (("--random-weights", "llava-1.5-7b", "--methods", "btp", "--keep", "0.05"), "5.0%"),
    ],
)
def test_what_cannot_be_had_is_one_line_before_anything_is_loaded(run, arguments, word, monkeypatch):
    monkeypatch.setattr(module, "random_model", None)
    monkeypatch.setattr(module, "named_model", None)
    in_one_line(run("bench", *arguments), word)
