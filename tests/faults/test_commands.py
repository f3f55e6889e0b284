"""Every option of every command with values that mean nothing: one line, exit code 2, and no work begun."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from unittest import mock

import pytest
import typer

from foveate.cli.app import app

LONG, BRACKETS, DIGITS = "n" * 300, "(" * 500, "9" * 30
VALUES = [
    *("", " ", "nosuch", "0", "-1", "1.5", "nan", "inf", "-inf", "1e999", ",", "a,b", "true", "["),
    *(DIGITS, LONG, BRACKETS, "\udcff\udcfe", "folder", "file", "missing/path"),
]
NEVER = {"", " ", "\udcff\udcfe"}  # means something nowhere
FILES = {*VALUES} - NEVER - {LONG, BRACKETS, "folder"}  # what a file to write may be called
# option, of one command or of all -> the values of these that mean something, so that the work begins
MEANT: dict[str, set[str]] = {
    "--json": FILES,
    "--overlay": FILES,
    "--picture": FILES,
    "--plot": FILES,
    "--rates": FILES - {"file"},  # which holds no rates
    "--out": FILES - {"file"} | {"folder"},
    "--prompt": {*VALUES} - NEVER,
    "--attn": {"missing/path"},  # a kernel of the Hub
    "bench --attention": {"missing/path"},
    "--seed": {"0"},
    "--decode": {"0"},
    "train tiny --questions": {"0"},
    "--check-every": {"0"},
    "--max-steps": {"-1"},
    "--epochs": {"1.5"},
    "--learning-rate": {"1.5"},
    "eval --layer": {"0"},
    "--tau": {"0"},
    "--tolerance": {"0", "1.5"},
    "--vision-layers": {"0"},
    "train ocvtp --vision-layer": {"0"},
    "--host": {*VALUES} - NEVER - {"1.5"},  # which is 1.0.0.5
    "serve --name": {*VALUES} - NEVER,
    "--keys": {"file"},
    "--port": {"0"},
    "--window-ms": {"0", "1.5"},
    "--min-visual": {"0"},
    "--seconds": {"1.5"},
    "eval --gallery": {"0"},
    "eval --time": {"0"},
    "tune --calibrate": {"0"},
    "tune --min-speedup": {"1.5"},
    "tune --layers": {"0"},
    "report --json": set(),
    "--max-megapixels": {"1.5"},
}
# what a command needs beside the option that is tried
NEEDED = {
    "run": ["--prompt", "x"],
    "tune": ["--out", "out", "--max-loss", "1%"],
    "report": ["folder"],
    "eval": ["--out", "out"],
    "calibrate btp": ["--out", "out", "--suite", "scenes", "--samples", "2"],
    "train tiny": ["--out", "out"],
    "train glimpse": ["--out", "out", "--suite", "scenes"],
    "train glimpse-plus": ["plus.yaml", "--out", "out"],
    "train ocvtp": ["--out", "out", "--suite", "scenes"],
}
INSTEAD = {
    "bench --rates": ["--predict"],
    "bench --layers": ["--random-weights", "llava-1.5-7b"],
    "bench --width": ["--random-weights", "llava-1.5-7b"],
    "calibrate btp --images": ["--out", "out"],
    "train glimpse --data": ["--out", "out"],
    "train glimpse --dataset": ["--out", "out"],
    "train glimpse --images": ["--out", "out", "--data", "data.jsonl"],
    "train glimpse-plus": ["--out", "out"],  # its argument
    **{f"demo {option}": ["--page"] for option in ("--host", "--port", "--model", "--device", "--dtype")},
    "train ocvtp --images": ["--out", "out"],
}
# where the work of a command begins
WORK = [
    "foveate.tiny.load",
    "transformers.AutoModelForImageTextToText.from_pretrained",
    "foveate.measure.bench.published_shapes.Shape.build",
    "foveate.measure.predict.bench.measure_rates",
    "foveate.tiny.training.train.train",
    "foveate.learn.glimpse_plus.setup.load_samples",
]
COMMAND: Any = typer.main.get_command(app)


class Begun(Exception):
    """The work has begun."""


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join([*path, name]), command


# every command with every option or argument that takes a value
OPTIONS = [
    (command, "" if parameter.param_type_name == "argument" else max(parameter.opts, key=len))
    for command, found in commands(COMMAND)
    for parameter in found.params
    if not getattr(parameter, "is_flag", False)
]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a command in a folder with a few files; gives exit code (None: the work began), and both streams."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("foveate.learn.glimpse_plus.train.need_trl", lambda: None)
    monkeypatch.setattr(import_module("foveate.cli.demo"), "need_gradio", lambda: None)  # the package has its function
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "data.jsonl").write_text("{}")
    (tmp_path / "plus.yaml").write_text("model: tiny\nsuite: scenes\n")
    before = sorted(tmp_path.rglob("*"))

    def run(*arguments: str, made: bool = False) -> tuple[int | None, str, str]:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.ExitStack() as stack:
            for work in WORK:
                stack.enter_context(mock.patch(work, side_effect=Begun))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            try:
                COMMAND.main(list(arguments), prog_name="foveate")
            except Begun:
                code = None
            except SystemExit as end:
                code = end.code
        if code == 2 and not made:
            assert sorted(tmp_path.rglob("*")) == before
            assert (tmp_path / "file").read_text() == "x"
        return code, out.getvalue(), err.getvalue()

    return run


def refused(found: tuple[int | None, str, str]) -> str:
    """The one line with which a command is refused."""
    code, out, err = found
    assert code == 2, (code, out, err)
    assert not out
    assert err.startswith("foveate: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=[" ".join(one).strip() for one in OPTIONS])
def test_every_option(command, option, call, tmp_path):
    name = f"{command} {option}".strip()
    meant = MEANT.get(name, MEANT.get(option, set()))
    base = [*command.split(), *INSTEAD.get(name, NEEDED.get(command, []))]
    for value in VALUES:
        words = [f"{option}={value}"] if option and value.startswith("-") else [option, value]
        found = call(*base, *(words if option else ["--", value]), made=command == "list")
        if value not in meant:
            assert len(refused(found)) < 2000, value
        elif command == "list":
            assert found[0] == 0
            assert {"methods", "models", "suites"} == set(json.loads((tmp_path / value).read_text()))
        else:
            assert found[0] is None, (value, found)


def test_all_values_that_mean_something_are_of_options():
    names = {f"{command} {option}" for command, option in OPTIONS}
    assert all(name in names or any(one.endswith(f" {name}") for one in names) for name in MEANT)
    assert len(OPTIONS) > 90


WRONG = [
    "bench --model tiny --random-weights llava-1.5-7b",
    "bench --layers 4",
    "bench --measure",
    "bench --rates rates.json",
    "bench --predict --check",
    "bench --predict --plot new.png",
    "bench --methods fastv,fastv",
    "bench --methods fastv:keep=0.2",
    "bench --methods fastv:layer=40 --random-weights llava-1.5-7b",
    "bench --visual 0,5",
    "bench --batch 1,,x",
    "calibrate btp --out out",
    "calibrate btp --out out --suite scenes --images folder",
    "calibrate btp --out out --images folder",
    "calibrate btp",
    "check tiny --methods uneven:nosuch=1",
    "check tiny --methods uneven:keep=2",
    "check tiny --family file.py:x",
    "check tiny fastv",
    "demo --keep 0.2 -o keep=0.3",
    "demo --port 8000",
    "demo --page --json new.json",
    "demo --page --keep 49",
    "demo --page --method nosuch",
    "eval --methods fastv,layer=1,layer=2",
    "eval --methods layer=1",
    "eval --methods :layer=1",
    "eval --methods random:seed=x",
    "eval --budget mean --keep 49",
    "eval --methods fastv:keep=0.2",
    "eval --methods btp:variant=paper,stages=default",
    "list methods models",
    "nosuch",
    "run --nosuch",
    "run -p",
    "run",
    "run -p x -m btp --keep 49",
    "run -p x -o compact_cache=maybe",
    "run -p x -o layer=99999999999999999999",
    "run -p x -o layer=1 -o layer=2",
    "run -p x -o stages",
    "run -p x -m btp -o stages=5",
    "run -p x -m btp -o stages=((3,0.5),(2,0.4))",
    "run -p x -m glimpseprune -o anchors=tl,middle",
    "run -p x -i file",
    "run -p x -i folder",
    "train",
    "train nosuch",
    "train glimpse --out out --suite scenes --data data.jsonl",
    "train glimpse --out out --suite scenes --images folder",
    "train glimpse --out out",
    "train glimpse --out out --suite scenes --max-steps 0",
    "train glimpse-plus plus.yaml --out out --device meta",
    "train ocvtp --out out",
    "train ocvtp --out out --suite scenes --images folder",
    "train ocvtp --out out --suite scenes --max-steps 0",
]


@pytest.mark.parametrize("words", WRONG)
def test_commands_that_make_no_sense(words, call):
    if words == "train":  # shows its help, which is its answer
        assert call("train")[0] == 2
        return
    refused(call(*words.split()))
