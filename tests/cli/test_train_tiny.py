"""`foveate train tiny` with a named recipe: stopped, resumed, and what it says about attention at the end."""

import json
import re

import pytest

from foveate.tiny.training.recipe import RECIPES
from foveate.tiny.training.run import Run
from tests.tiny.test_training import MINUTE, Stopped


def test_a_named_recipe_resumes_and_says_where_attention_goes(run, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "large", MINUTE)
    command = ("train", "tiny", "--out", tmp_path / "run", "--recipe", "large", "--questions", 17)
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
    assert log[-1]["small"] > 0, "small pictures were asked about"
    found = json.loads((tmp_path / "run" / "check.json").read_text())
    assert "--recipe large" in found["made"]["command"]
    seen = found["figures"]["attention"]
    assert len(seen["share"]) == MINUTE.shape.layers
    rows = re.findall(r"^\| +(\d+) \|(.*)\|$", done.output, re.MULTILINE)
    assert [row[0] for row in rows] == [str(layer) for layer in range(MINUTE.shape.layers)]
    assert [cell.strip() for cell in rows[3][1].split("|")] == [
        f"{seen[k][3]:.2f}" for k in ("mass", "share", "recall")
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--recipe", "huge"), "shipped, large, many"),
        (("--recipe", "many", "--scenes", "60"), "starts from the shipped weights"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_what_is_not_there_is_said_before_the_first_scene(run, tmp_path, options, told):
    done = run("train", "tiny", "--out", tmp_path / "run", *options)
    assert done.exit_code != 0
    assert told in done.output
    assert not (tmp_path / "run").exists()
