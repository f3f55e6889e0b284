"""Files that cannot be written are refused before the work; what is written is whole; any stream can be written to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from foveate.cli.app import app
from foveate.cli.outputs import OutputError, write_json, written
from foveate.measure.eval.evaluate import RESULT
from tests.measure.results import write_result

# every option of every command that names a file or folder to write
TO_WRITE = [
    (["list"], "--json"),
    (["run", "-p", "what?"], "--json"),
    (["run", "-p", "what?"], "--overlay"),
    (["demo"], "--json"),
    (["demo"], "--picture"),
    (["check", "tiny"], "--json"),
    (["eval"], "--json"),
    (["eval"], "--out"),
    (["bench"], "--json"),
    (["bench"], "--plot"),
    (["bench", "--predict"], "--rates"),
    (["calibrate", "btp"], "--out"),
    (["tune", "--max-loss", "1%"], "--out"),
    (["tune", "--max-loss", "1%", "--out", "out"], "--json"),
    (["train", "tiny"], "--out"),
    (["train", "glimpse"], "--out"),
    (["train", "glimpse-plus", "none.yaml"], "--out"),
    (["train", "ocvtp"], "--out"),
    *((["report", "one"], option) for option in ("--html", "--png", "--csv", "--latex", "--json")),
]
WRITES = ("overlay", "picture", "plot", "rates", "out", "html", "png", "csv", "latex")


def wrong_names(folder: Path, option: str) -> list[Path]:
    (folder / "file").write_text("here before")
    wrong = [folder / "file" / "below", folder / ("n" * 300)]
    return [*wrong, folder / "file"] if option == "--out" else [*wrong, folder]


@pytest.mark.parametrize(("command", "option"), TO_WRITE, ids=[" ".join([*c, o]) for c, o in TO_WRITE])
def test_they_are_refused_before_the_work(command, option, tmp_path, monkeypatch):
    for name in wrong_names(tmp_path, option):
        result = CliRunner().invoke(app, [*command, option, str(name)], catch_exceptions=True)
        assert result.exit_code == 2, (name, result.output, result.exception)
        message = [line for line in result.stderr.splitlines() if line]
        assert len(message) == 1, message
        assert message[0].startswith(f"foveate: {option}")
        assert not result.stdout
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file"]
    assert (tmp_path / "file").read_text() == "here before"


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_option_that_writes_is_among_them():
    """Those that are called so; --json of the other commands is the same option."""
    there = {
        (path, max(parameter.opts, key=len))
        for path, command in commands(typer.main.get_command(app))
        for parameter in command.params
        if parameter.name in WRITES
    }
    tried = {
        (tuple(word for word in command if word.isalpha() or word == "glimpse-plus")[:2], option)
        for command, option in TO_WRITE
        if option != "--json"
    }
    assert {option for _, option in there} == {option for _, option in tried}
    assert len(there) == len(tried)


TWO = [
    ["run", "-p", "what?", "--overlay", "same.png", "--json", "same.png"],
    ["demo", "--picture", "same.png", "--json", "./same.png"],
    ["bench", "--plot", "same.png", "--json", "same.png"],
    ["eval", "--out", "same", "--json", "same"],
    ["bench", "--predict", "--rates", "same.json", "--json", "same.json"],
    ["report", "one", "--html", "folder/../same.html", "--csv", "same.html"],
]


@pytest.mark.parametrize(
    ("command", "name"),
    [("eval", "answers.jsonl"), ("eval", "result.json"), ("tune", "answers.jsonl"), ("tune", "tune.json")],
)
def test_a_result_does_not_take_the_place_of_the_answers(command, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [command, "--out", "mine", "--json", f"./mine/{name}", "--samples", "1"])
    assert result.exit_code == 2, result.output
    assert "written by this command itself" in result.stderr
    assert not any(tmp_path.iterdir())


INTO = [
    ["calibrate", "btp", "--suite", "scenes", "--json", "mine/config.json"],
    ["train", "glimpse", "--suite", "scenes", "--json", "./mine/model.safetensors"],
    ["train", "glimpse-plus", "plus.yaml", "--json", "mine/plus.json"],
    ["train", "ocvtp", "--suite", "scenes", "--json", "x/../mine/README.md"],
]


@pytest.mark.parametrize("command", INTO, ids=" ".join)
def test_a_result_does_not_go_among_the_files_of_a_pruner(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plus.yaml").write_text("model: tiny\n")
    result = CliRunner().invoke(app, [*command, "--out", "mine"])
    assert result.exit_code == 2, result.output
    assert "lies among the files of --out" in result.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["plus.yaml"]


@pytest.mark.parametrize("command", TWO, ids=" ".join)
def test_two_results_do_not_go_to_one_file(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert "writes there, too" in result.stderr
    assert result.stderr.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("option", ["--html", "--csv", "--latex", "--json"])
def test_a_report_does_not_take_the_place_of_its_result(option, tmp_path):
    file = write_result(tmp_path / "one") / RESULT
    before = file.read_bytes()
    result = CliRunner().invoke(app, ["report", str(tmp_path / "one"), option, str(file)])
    assert result.exit_code == 2, result.output
    assert "is read by this command, and would be lost" in result.stderr
    assert file.read_bytes() == before


def test_an_overlay_does_not_take_the_place_of_the_image(tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    before = image.read_bytes()
    result = CliRunner().invoke(app, ["run", "-p", "what?", "-i", str(image), "--overlay", str(image)])
    assert result.exit_code == 2, result.output
    assert "would be lost" in result.stderr
    assert image.read_bytes() == before


def test_an_evaluation_whose_result_cannot_be_written_is_shown(tmp_path, monkeypatch):
    found = json.loads((write_result(tmp_path / "one") / RESULT).read_text())
    (tmp_path / "out" / RESULT).mkdir(parents=True)
    monkeypatch.setattr("foveate.measure.loading.load_model", lambda *_: None)
    monkeypatch.setattr("foveate.measure.eval.evaluate.evaluate", lambda *_: {**found, "skipped_rows": []})
    result = CliRunner().invoke(app, ["eval", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert "cannot write" in result.stderr
    assert "fastv" in result.stdout


def test_json_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}

    def half() -> None:
        with written(path) as new:
            new.write_text("half")
            raise OSError(28, "disk full")

    with pytest.raises(OutputError, match=r"cannot write .*a\.json: disk full"):
        half()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [one.name for one in path.parent.iterdir()] == ["a.json"]


def test_a_failure_to_write_comes_after_the_result(monkeypatch, tmp_path):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    result = CliRunner().invoke(app, ["list", "methods", "--json", str(tmp_path / "a.json")])
    assert result.exit_code == 2
    assert "greedyprune" in result.stdout
    assert "No space left" in result.stderr
    assert "Traceback" not in result.output


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    known = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LC_ALL", "LANG")}
    return subprocess.run(
        [sys.executable, "-m", "foveate", *arguments],
        capture_output=True,
        env={**known, **environment},
        timeout=120,
        check=False,
    )


def test_json_on_standard_output_is_alone_there():
    found = run("list", "--json", "-")
    assert found.returncode == 0
    assert {"methods", "models", "suites"} == set(json.loads(found.stdout))
    assert b"greedyprune" in found.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_a_stream_is_given_what_it_can_carry(encoding):
    found = run("list", PYTHONIOENCODING=encoding)
    assert found.returncode == 0, found.stderr
    text = found.stdout.decode(encoding)
    assert "lambda" in text
    assert "greedyprune" in text


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
        *({"COLUMNS": n} for n in ("0", "-5", "x", "²", "7", "999999")),
    ],
    ids=str,
)
def test_odd_terminals(environment):
    found = run("list", "methods", **environment)
    assert found.returncode == 0, found.stderr
    assert b"greedyprune" in found.stdout
    assert b"\x1b[" not in found.stdout


def test_a_closed_pipe_ends_quietly():
    found = subprocess.run(
        f'"{sys.executable}" -m foveate list | head -n 1', shell=True, capture_output=True, timeout=120, check=False
    )
    assert b"Traceback" not in found.stderr


def test_an_address_that_is_taken_is_refused_before_the_model_is_loaded(monkeypatch):
    pytest.importorskip("uvicorn")
    monkeypatch.setattr("foveate.measure.loading.load_model", lambda *_: pytest.fail("a model was loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "--port", str(port)])
    assert result.exit_code == 2, result.output
    assert f"cannot listen on 127.0.0.1, port {port}: " in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_host_of_urls_is_a_name():
    pytest.importorskip("uvicorn")
    result = CliRunner().invoke(app, ["serve", "--urls", "--url-host", "http://example.org/a"])
    assert result.exit_code == 2, result.output
    assert "a host of URLs is a name such as example.org" in result.stderr
