"""Files of questions that no evaluation can use: one line, exit code 2, nothing written, before a model is loaded."""

from __future__ import annotations

import base64
import functools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

import foveate
from foveate.cli.app import app
from foveate.errors import BudgetError
from foveate.learn.data.readers import from_jsonl
from foveate.learn.errors import TrainingDataError, TrainingError
from foveate.learn.glimpse_plus.config import read_settings
from foveate.measure.eval.evaluate import JOURNAL, RESULT
from foveate.measure.eval.tables import result_notes, result_tables
from foveate.measure.predict.rates import Rates, RatesError
from foveate.measure.report.export import as_csv
from foveate.measure.report.read import EvalResult, ReportError, read_results
from tests.faults.test_commands import refused
from tests.measure.folders import picture
from tests.measure.own_data import data_uri, png, write_jsonl
from tests.measure.results import write_result

GOOD = {"image": "a.png", "question": "what?", "answer": "red"}
HEAD = "image,question,answer\n"
Make = Callable[[Path], Path]


def text(name: str, given: str | bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(given.encode() if isinstance(given, str) else given)
        return folder / name

    return make


def line(**fields: object) -> Make:
    """A good line, and one with other fields; `...` takes a field away."""
    row = {key: value for key, value in {**GOOD, **fields}.items() if value is not ...}
    return lambda folder: write_jsonl(folder / "a.jsonl", [GOOD, row])


def parquet_without_rows(folder: Path) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.string())}), folder / "a.parquet")
    return folder / "a.parquet"


def parquet_of_numbers(folder: Path) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [1, 2], "question": ["a", "b"]}), folder / "a.parquet")
    return folder / "a.parquet"


def cut_parquet(folder: Path) -> Path:
    path = parquet_of_numbers(folder)
    path.write_bytes(path.read_bytes()[:-30])
    return path


def images_without_questions(folder: Path) -> Path:
    (folder / "images").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "images" / "a.png")
    return folder / "images"


def images_with_a_broken_sidecar(folder: Path) -> Path:
    (images_without_questions(folder) / "a.json").write_text("{question")
    return folder / "images"


def saved_and_broken(folder: Path) -> Path:
    (folder / "saved").mkdir()
    (folder / "saved" / "state.json").write_text("{}")
    return folder / "saved"


def nothing_but_notes(folder: Path) -> Path:
    (folder / "notes").mkdir()
    (folder / "notes" / "a.md").write_text("x")
    return folder / "notes"


# what is wrong -> the file, and what the line must say
FILES: dict[str, tuple[Make, str]] = {
    "no file": (lambda folder: folder / "gone.jsonl", "no file or folder"),
    "another kind of file": (text("a.xlsx", "x"), "a file of the forms"),
    "empty JSONL": (text("a.jsonl", ""), "has no row"),
    "blank lines": (text("a.jsonl", "\n  \n"), "has no row"),
    "half a line": (text("a.jsonl", json.dumps(GOOD) + '\n{"image": "a.p'), "line 2: it is no JSON"),
    "no object": (text("a.jsonl", "[1]\n7\n"), "there is more after the list"),
    "a number a line": (text("a.jsonl", "7\n"), "line 1: a row is a JSON object"),
    "not in UTF-8": (text("a.jsonl", b'{"question": "\xff\xfe"}\n'), "line 1: it is not in UTF-8"),
    "UTF-16": (text("a.jsonl", json.dumps(GOOD).encode("utf-16")), "not in UTF-8"),
    "brackets in brackets": (text("a.json", "[" * 100_000), "no list in JSON"),
    "a list that ends early": (text("a.json", "[" + json.dumps(GOOD) + ","), "after item 0"),
    "a list without commas": (text("a.json", "[" + 2 * json.dumps(GOOD) + "]"), "after item 0"),
    "a list of texts": (text("a.json", '["a", "b"]'), "item 0: a row is a JSON object"),
    "an empty list": (text("a.json", "[]"), "has no row"),
    "empty CSV": (text("a.csv", ""), "has no row"),
    "CSV of a head alone": (text("a.csv", HEAD), "has no row"),
    "CSV with a name twice": (text("a.csv", "image,image\na.png,b\n"), "line 1: the columns"),
    "CSV with too many cells": (text("a.csv", HEAD + "a.png,what?,red,blue\n"), "line 2: it has 4 cells"),
    "CSV with an open quote": (text("a.csv", HEAD + 'a.png,"what?,red\n'), "line 2: unexpected end"),
    "CSV not in UTF-8": (text("a.csv", HEAD.encode() + b"a.png,\xff,red\n"), "line 2"),
    "no Parquet": (text("a.parquet", "PAR1"), "no Parquet file"),
    "Parquet cut off": (cut_parquet, "no Parquet file"),
    "Parquet without rows": (parquet_without_rows, "has no row"),
    "Parquet with numbers as images": (parquet_of_numbers, "row 0: an image is a path"),
    "a broken data set": (saved_and_broken, "cannot read"),
    "a folder without images": (nothing_but_notes, "holds no image"),
    "images without questions": (images_without_questions, "a.png: there is neither a.txt nor a.json"),
    "a broken sidecar": (images_with_a_broken_sidecar, "a.png: it is no JSON"),
    "no image": (line(image=...), "line 2: the field 'image' is missing"),
    "no question": (line(question=...), "line 2: the field 'question' is missing"),
    "an empty question": (line(question=" "), "line 2: the field 'question' holds no text"),
    "a question that is a list": (line(question=["a"]), "line 2: the field 'question' holds no text"),
    "no answer": (line(answer=...), "line 2: it has no answer"),
    "an answer that is true": (line(answer=True), "line 2: the field 'answer' holds no text"),
    "two fields of answers": (line(answers=["red"]), "line 2: it has both"),
    "an answer that is no choice": (line(choices=["a", "b"]), "line 2: the answer 'red' is none of the choices"),
    "choices of brackets in brackets": (
        line(choices="[" * 100_000),
        "line 2",
    ),
    "one choice": (line(choices=["red"]), "line 2: the field 'choices' holds 2 to"),
    "a box of three numbers": (line(boxes=[[1, 2, 3]]), "line 2: a box is four numbers"),
    "a box beyond the image": (line(boxes=[[0, 0, 900, 900]]), "line 2: a box of"),
    "an empty box": (line(boxes=[[0.5, 0, 0.5, 1]]), "line 2: the box"),
    "an image that is not there": (line(image="gone.png"), "line 2: no image file"),
    "an image that is a folder": (line(image="."), "line 2: cannot read"),
    "an image that is none": (line(image="a.jsonl"), "line 2: a.jsonl is not an image"),
    "an image cut off": (line(image="cut.png"), "line 2: cut.png is a broken or truncated image"),
    "an image with a NUL in its name": (line(image="a\0.png"), "line 2"),
    "an image too large": (line(image="bomb.png"), "line 2: bomb.png is too large"),
    "a URL that was not allowed": (line(image="http://127.0.0.1:9/a.png"), "line 2: .* --allow-urls"),
    "a URL of another kind": (line(image="file:///etc/passwd"), "line 2: .* a URL of http"),
    "a data URI that is no base64": (line(image="data:image/png;base64,@@"), "line 2: a data URI is no base64"),
    "a data URI of text": (line(image="data:text/plain,x"), "line 2: a data URI is"),
    "a data URI that is no image": (
        line(image="data:image/png;base64," + base64.b64encode(b"text").decode()),
        "line 2: the image of a data URI is not an image",
    ),
    "a video that is none": (line(video="a.jsonl", image=...), "line 2: a.jsonl is no video"),
    "a video without frames": (line(video=[], image=...), "line 2: the video has no frames"),
}


def write_images(folder: Path) -> None:
    """The images that the files name: a good one, one cut off, and one that says it is 60,000 pixels wide and high."""
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    (folder / "cut.png").write_bytes(png(picture())[:2000])
    head = bytearray((folder / "a.png").read_bytes())
    head[16:24] = (60_000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bytes(head))


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run `foveate eval` on a file; a model must not be asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_images(tmp_path)

    def run(*arguments: object) -> tuple[int | None, str, str]:
        before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
        unloaded = mock.patch("foveate.measure.loading.load_model", side_effect=AssertionError("a model was loaded"))
        with unloaded, pytest.raises(SystemExit) as ended:
            app(["eval", "--out", "out", *map(str, arguments)])
        assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", list(FILES))
def test_a_file_that_cannot_be_used(name, call, tmp_path):
    make, says = FILES[name]
    if "video that is none" in name:
        pytest.importorskip("av")
    found = refused(call("--data", make(tmp_path)))
    assert len(found) < 2000
    assert re.search(says, found), found


def test_the_page_has_forty_of_them_and_more():
    page = (Path(__file__).parents[2] / "docs" / "data-errors.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ", 1)] for line in page.splitlines() if "| `" in line]
    said = {name: line.strip("`") for name, line in rows}
    assert list(said) == list(FILES), "stale: python .ci/data_errors.py --write"
    assert len(said) >= 40
    for name, (_, says) in FILES.items():
        assert re.search(says, said[name]), "stale: python .ci/data_errors.py --write"


def test_rows_that_are_all_bad_are_refused_when_skipped_too(call, tmp_path):
    path = write_jsonl(tmp_path / "b.jsonl", [{"image": "gone.png", "question": "?"}] * 9)
    found = refused(call("--data", path, "--bad-rows", "skip"))
    assert "9 of 9 rows" in found
    assert "and 4 more" in found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--data", "nosuch/dataset"), "the Hub does not answer"),
        (("--data", "good.jsonl", "--split", "test"), "--split and --subset"),
        (("--data", "good.jsonl", "--field", "query"), "--field is written as"),
        (("--data", "good.jsonl", "--field", "nope=query"), "no field 'nope'"),
        (("--data", "good.jsonl", "--field", "question=query"), "no field 'query'; there are image, question"),
        (("--data", "good.jsonl", "--metric", "nope"), "no metric 'nope'; there are exact"),
        (("--data", "good.jsonl", "--metric", "choice"), "it has no choices"),
        (("--data", "good.jsonl", "--mode", "score", "--metric", "f1"), "generates no answers"),
        (("--data", "good.jsonl", "--bad-rows", "maybe"), "'fail' or 'skip'"),
        (("--data", "good.jsonl", "--metric", "chart=f1"), "no row is of the task 'chart'; there are"),
        (("--data", "good.jsonl", "--json", "folder/../good.jsonl"), "is read by this command, and would be lost"),
        (("--frames", "8"), "--frames goes with --data"),
        (("--score-tokens", "8"), "--score-tokens goes with --data"),
        (("--metric", "f1"), "--data"),
        (("--field", "question=query"), "--data"),
        (("--bad-rows", "skip"), "--data"),
    ],
)
def test_options_of_data_that_make_no_sense(arguments, says, call, tmp_path):
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "good.jsonl", [{**GOOD, "image": data_uri(Image.new("RGB", (4, 4)))}])
    assert says in refused(call(*arguments))


DEEP = "[" * 100_000
GROUNDED = {"image": "a.png", "question": "what?", "answer": "red", "boxes": [[0.0, 0.0, 0.5, 0.5]]}


def nested(folder: Path, name: str, given: str) -> Path:
    (folder / name).write_text(given)
    return folder / name


def journal(folder: Path, line: str) -> EvalResult:
    """A result whose journal of answers ends with another line."""
    write_result(folder)
    with (folder / JOURNAL).open("a") as file:
        file.write(line + "\n")
    return read_results([folder])[0]


# what reads a file -> the reading of one that is not what it should be, and the error
READ: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "a pruner's config": (lambda folder: foveate.load(nested(folder, "config.json", DEEP).parent), BudgetError),
    "a list of samples": (lambda folder: from_jsonl(nested(folder, "a.json", DEEP)), TrainingDataError),
    "a sample a line": (
        lambda folder: from_jsonl(nested(folder, "a.jsonl", '{"image":' + DEEP), images=folder),
        TrainingDataError,
    ),
    "boxes in a text": (
        lambda folder: from_jsonl(nested(folder, "a.jsonl", json.dumps({**GROUNDED, "boxes": [DEEP]}))),
        TrainingDataError,
    ),
    "rates": (lambda folder: Rates.load(nested(folder, "a.json", DEEP)), RatesError),
    "settings in JSON": (lambda folder: read_settings(nested(folder, "a.json", DEEP)), TrainingError),
    "settings in YAML": (lambda folder: read_settings(nested(folder, "a.yaml", DEEP)), TrainingError),
    "a result": (lambda folder: read_results([nested(folder, "a.json", DEEP)]), ReportError),
    "answers": (lambda folder: journal(folder, DEEP).answers(), ReportError),
    "an answer of no arm": (lambda folder: journal(folder, '{"index": 0}').answers(), ReportError),
    "an answer that is a number": (lambda folder: journal(folder, "7").answers(), ReportError),
}


@pytest.mark.parametrize("name", list(READ))
def test_brackets_in_brackets_are_no_overflow_of_the_stack(name, tmp_path):
    """json raises RecursionError for them, which is no ValueError."""
    read, error = READ[name]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(error) as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 2000


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path to everything in plain data; of a list, to its first item alone."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*path, key))


@pytest.mark.parametrize("bad", [..., None, "x", [], 5], ids=str)
def test_a_damaged_result_is_refused_or_shown(bad, tmp_path):
    """Wherever it is damaged; `...` takes the place away."""
    file = write_result(tmp_path) / RESULT
    whole, refusals = json.loads(file.read_text()), []
    for path in list(places(whole)):
        data = json.loads(json.dumps(whole))
        *way, last = path
        at = functools.reduce(lambda inner, key: inner[key], way, data)
        if bad is ...:
            del at[last]
        else:
            at[last] = bad
        file.write_text(json.dumps(data))
        try:
            found = read_results([tmp_path])
        except ReportError as error:
            refusals.append(str(error))
            continue
        assert result_tables(found[0].data), path
        result_notes(found[0].data)
        assert as_csv(found), path
    assert len(refusals) > 20
    assert not any("\n" in one for one in refusals)
