"""`foveate train tiny` with a named recipe: stopped, resumed, and what it says about attention at the end."""

import json
import re
from dataclasses import replace

import pytest

from foveate.tiny.training.recipe import RECIPES
from foveate.tiny.training.run import Run
from tests.tiny.test_training import MINUTE, Stopped


def test_the_control_resumes_and_says_where_its_attention_goes(run, tmp_path, monkeypatch):
    assert RECIPES["unled"] == replace(RECIPES["shipped"], led_until=0)
    monkeypatch.setitem(RECIPES, "unled", replace(MINUTE, led_until=0))
    command = ("train", "tiny", "--out", tmp_path / "run", "--recipe", "unled", "--questions", 17)
    monkeypatch.setattr("sys.argv", ["foveate", *map(str, command)])
    save = Run.save

    def stop(self, stage, step, *rest):
        save(self, stage, step, *rest)
        if stage == "vision":
            raise Stopped

    monkeypatch.setattr(Run, "save", stop)
    assert isinstance(run(*command).exception, Stopped)
    monkeypatch.setattr(Run, "save", save)
    assert "resume it" in run(*command).output
    done = run(*command, "--resume")
    assert done.exit_code == 0, done.output
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == ["start", "vision", "start", "language"]
    assert "evidence" not in log[-1], "no loss led it"
    assert log[-1]["small"] > 0, "small pictures were asked about"
    found = json.loads((tmp_path / "run" / "check.json").read_text())
    assert "--recipe unled" in found["made"]["command"]
    own, shipped = found["figures"]["attention"], found["figures"]["attention_shipped"]
    assert (len(own["share"]), len(shipped["share"])) == (MINUTE.shape.layers, 12)
    assert own["area"] == shipped["area"], "the same questions"
    rows = re.findall(r"^\| +(\d+) \|(.*)\|$", done.output, re.MULTILINE)
    assert [row[0] for row in rows] == [str(layer) for layer in range(12)]
    assert [cell.strip() for cell in rows[3][1].split("|")][1] == f"{own['share'][3]:.2f}"
    assert [cell.strip() for cell in rows[9][1].split("|")] == [
        "–",
        "–",
        "–",
        f"{shipped['share'][9]:.2f}",
        f"{shipped['recall'][9]:.2f}",
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--recipe", "huge"), "shipped, unled, sizes, large, many"),
        (("--recipe", "many", "--scenes", "60"), "starts from the shipped weights"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_what_is_not_there_is_said_before_the_first_scene(run, tmp_path, options, told):
    done = run("train", "tiny", "--out", tmp_path / "run", *options)
    assert done.exit_code != 0
    assert told in done.output
    assert not (tmp_path / "run").exists()
