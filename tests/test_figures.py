"""Every measured figure in README and docs stands in the result file that its section links to; every command runs.

A figure is a share in per cent, a ratio ("2.6 times", "97 [95, 98]"), a time or a size, and each number in a table of
a section that links to results. Its source is a file in benchmarks/results: linked in the same section, or named there
in a comment. What else a section's numbers may be, comments say:

    <!-- figures: benchmarks/results/x.json -->       another source, that no sentence links to
    <!-- figures: settings 22 11.1 -->                numbers that were set and not measured
    <!-- figures: paper 29.9 37.1 -->                 numbers out of a paper, which the page cites
    <!-- figures: 24.7 = 124.7 - 100 -->              worked out from numbers that do stand in the source

Columns whose head says "paper", "default" or "wanted", and sections on what a paper says or on options, hold no figure
of ours.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from foveate.cli.app import app
from foveate.measure import environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NUMBER = r"[-+−]?\d+(?:,\d{3})*(?:\.\d+)?"
LIST = rf"{NUMBER}(?:(?:, | and | to | or |–){NUMBER})*"
UNITS = r"(?:%|times\b|×|ms\b|s\b|seconds\b|minutes\b|MiB\b|MB\b|GB\b|nats\b|points\b)"
NOT_OURS = re.compile(r"paper says|paper and code|paper and released|paper, authors|what is known", re.IGNORECASE)
NO_FIGURES = re.compile(r"paper|default|wanted|published|option", re.IGNORECASE)


class Section(NamedTuple):
    """The text under one heading."""

    heading: str
    text: str

    @property
    def notes(self) -> list[str]:
        """What the comments say."""
        return re.findall(r"<!-- figures: (.*?) -->", self.text, flags=re.DOTALL)

    @property
    def given(self) -> set[str]:
        """Numbers that are no measurement of ours."""
        words = [note.split() for note in self.notes]
        return {number for note in words if note[0] in ("paper", "settings") for number in note[1:]}

    @property
    def derived(self) -> dict[str, str]:
        """Numbers worked out, with how."""
        return dict(tuple(note.split(" = ", 1)) for note in self.notes if " = " in note)

    def sources(self, page: Path) -> list[Path]:
        """The result files of the section."""
        links = [page.parent / link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", self.text)]
        links += [ROOT / word for note in self.notes for word in note.split() if word.startswith("benchmarks/")]
        inside = [link.resolve() for link in links if link.suffix in (".md", ".json", ".jsonl")]
        return [link for link in inside if link.is_relative_to(RESULTS)]


def sections(text: str) -> list[Section]:
    """The sections of a page, code left out."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    pieces = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return [Section(heading, body) for heading, body in zip(pieces[1::2], pieces[2::2], strict=True)]


def plain(text: str) -> str:
    """Without comments, code, and where links lead."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def figures(section: Section, measured: bool) -> Iterator[str]:
    """The figures of a section as they are written: "96.7", or "96.7 [95.4, 98.0]"."""
    text = plain(section.text)
    for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        text = text.replace(table, "\n")
        head, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
        ours = [at for at, title in enumerate(head) if at and not NO_FIGURES.search(title)]
        for row in rows:
            for cell in (row[at] for at in ours if at < len(row)):
                whole = re.fullmatch(rf"\**({NUMBER})(?: (\[.*\]))?(?: ?[%×])?\**", cell)
                if whole and (measured or "%" in cell or whole[2]):
                    yield whole[1] + (f" {whole[2]}" if whole[2] else "")
                elif not whole:
                    yield from in_words(cell)
    yield from in_words(text)


def in_words(text: str) -> Iterator[str]:
    """The figures of a sentence."""
    text = " ".join(text.split()).replace("*", "")
    interval = rf"({NUMBER}) (\[{NUMBER}, {NUMBER}\])"
    for value, bounds in re.findall(interval, text):
        yield f"{value} {bounds}"
    for numbers in re.findall(rf"(?<![\w.])({LIST}) ?{UNITS}", re.sub(interval, "", text)):
        yield from re.findall(NUMBER, numbers)


@cache
def content(source: Path) -> tuple[str, tuple[float, ...], bool]:
    """The text of a result file, its numbers, and whether shares in it are not per cent."""
    text = source.read_text(encoding="utf-8")
    found = re.findall(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?![\w])", text)
    return text, tuple(float(number.replace(",", "")) for number in found), source.suffix != ".md"


def stands_in(figure: str, source: Path) -> bool:
    """Whether a file holds a figure, rounded as it is written."""
    text, numbers, shares = content(source)
    if "[" in figure:
        return figure in text
    written = figure.replace(",", "").replace("−", "-").lstrip("+")
    digits = len(written.partition(".")[2])
    wanted, step = abs(float(written)), 0.51 * 10**-digits
    scales = (1, 100, 1e-3) if shares else (1,)
    return any(abs(abs(number) * scale - wanted) <= step for number in numbers for scale in scales)


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def worked_out(formula: str) -> float:
    """The value of a sum such as 124.7 - 100."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        return float(ast.literal_eval(node))

    return value(ast.parse(formula, mode="eval").body)


def without_source(page: Path, text: str) -> list[str]:
    """What is wrong with the figures of a page."""
    wrong, cites = [], "arxiv.org" in text
    for section in sections(text):
        sources = section.sources(page)
        if section.heading == "Options":
            continue
        if NOT_OURS.search(section.heading):
            if not cites:
                wrong.append(f"{section.heading}: figures of a paper that the page does not cite")
            continue
        if any(note.startswith("paper ") for note in section.notes) and not cites:
            wrong.append(f"{section.heading}: figures of a paper that the page does not cite")
        for figure in dict.fromkeys(figures(section, bool(sources))):
            if figure in section.given or figure in ("0", "100"):
                continue
            formula = section.derived.get(figure)
            if formula is not None:
                digits = len(figure.partition(".")[2])
                operands = [n for n in re.findall(r"\d+(?:\.\d+)?", formula) if n not in ("1", "100")]
                if abs(worked_out(formula) - float(figure)) > 0.51 * 10**-digits:
                    wrong.append(f"{section.heading}: {formula} is not {figure}")
            else:
                operands = [figure]
            wrong += [
                f"{section.heading}: {one} is in none of {[source.name for source in sources]}"
                for one in operands
                if not any(stands_in(one, source) for source in sources)
            ]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_figure_stands_in_its_result_file(page):
    assert without_source(page, page.read_text(encoding="utf-8")) == []


# -- the commands


INDEX = RESULTS / "README.md"
ROW = re.compile(r"^\| \[([^]]+)\]\([^)]+\) \| (\w+) \| [^|]+ \| `(.*)` \|$", re.MULTILINE)
ROWS = ROW.findall(INDEX.read_text(encoding="utf-8"))


def typed_commands(page: Path) -> list[str]:
    """The commands in the shell blocks of a page, each on one line, without comments."""
    found = []
    shell = re.compile(r"^```(?:bash|sh)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
    for block in shell.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            pieces = re.split(r" && ", line.split("  #")[0])
            found += [piece.strip() for piece in pieces if re.match(r"(foveate|python) ", piece.strip())]
    return found


def cannot_run(command: str) -> str | None:
    """Why a command does not even start, if so: no such command, script, module or option."""
    words = shlex.split(command, comments=True)
    if words[0] == "foveate":
        try:
            found, rest = get_command(app), words[1:]
            while isinstance(found, TyperGroup):
                context = found.make_context("foveate", [*rest], resilient_parsing=True)
                _, found, rest = found.resolve_command(context, rest)
            found.make_context("foveate", rest)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return str(error) or type(error).__name__
        return None
    if words[1] == "-m":
        return None if find_spec(words[2]) else f"no module {words[2]}"
    script = ROOT / words[1]
    if not script.is_file():
        return f"no script {words[1]}"
    text = script.read_text(encoding="utf-8")
    unknown = [word for word in words[2:] if word.startswith("--") and f'"{word.split("=")[0]}"' not in text]
    return f"{words[1]} has no option {unknown}" if unknown else None


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_exist(page):
    wrong = {command: why for command in typed_commands(page) if (why := cannot_run(command))}
    assert not wrong


@pytest.mark.parametrize(("result", "command"), [(name, command) for name, _, command in ROWS])
def test_the_command_of_a_result_exists(result, command):
    assert (RESULTS / result).is_file()
    assert cannot_run(command.replace("\\|", "|")) is None


def test_every_result_is_in_the_index_with_the_command_it_recorded():
    listed = {name: command.replace("\\|", "|") for name, _, command in ROWS}
    there = [*RESULTS.glob("*.json"), *RESULTS.glob("*/result.json"), *RESULTS.glob("*/calibration.json")]
    assert set(listed) == {path.relative_to(RESULTS).as_posix() for path in there}
    for path in there:
        found = json.loads(path.read_text(encoding="utf-8"))
        recorded = shlex.split(found.get("command") or found["made"]["command"])
        typed = shlex.split(listed[path.relative_to(RESULTS).as_posix()])
        options = [word for word in recorded if word.startswith("--")]
        assert [word for word in typed if word.startswith("--")] == options
        assert typed[-1] == recorded[-1]


def test_a_result_of_older_code_says_so(record_property):
    """The index names the commit of each result, and calls none current whose code is not today's."""
    today, older = environment.code_fingerprint(), []
    for name, commit, _ in ROWS:
        found = json.loads((RESULTS / name).read_text(encoding="utf-8"))
        code = found.get("code") or found.get("configuration", {}).get("code")
        if code != today:
            older.append(name)
            assert re.fullmatch("[0-9a-f]{7,40}", commit), f"{name} is older than the code: name its commit"
            record_property(name, f"made at {commit}, {commits_since(commit)} commits to src since")
    said = "none of these results was made anew with the code of\ntoday" in INDEX.read_text(encoding="utf-8")
    assert not said or len(older) == len(ROWS), "the index says that none is of today's code, and one is"


def commits_since(commit: str) -> str:
    """How many commits to src came after one; "?" where the history is not there."""
    done = subprocess.run(
        ["git", "rev-list", "--count", f"{commit}..HEAD", "--", "src"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "?"


# -- the test itself


METHODS, BENCH, PLUS = (
    f"benchmarks/results/{name}"
    for name in ("first_methods/result.md", "realised_realised.md", "first_glimpse_plus/result.md")
)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (f"It keeps 93.1 [90.5, 95.7] % of [it](../{METHODS}).", 0),
        (f"It keeps 93.1 [90.5, 95.8] % of [it](../{METHODS}).", 1),
        (f"It keeps 93.3 to 96.6 % of [it](../{METHODS}).", 1),
        ("It is 2.62 times as fast.", 1),
        (f"It is 2.62 times as fast. <!-- figures: {BENCH} -->", 0),
        ("| a | b | paper |\n|---|---|---|\n| x | 7 % | 8 % |\n", 1),
        (f"RL gives 24.7 points. <!-- figures: 24.7 = 124.7 - 100 --><!-- figures: {PLUS} -->", 0),
        (f"RL gives 24.8 points. <!-- figures: 24.8 = 124.7 - 100 --><!-- figures: {PLUS} -->", 1),
        ("At 22 % of the tokens. <!-- figures: settings 22 -->", 0),
        ("The paper has 22 %. <!-- figures: paper 22 -->", 1),
    ],
)
def test_a_wrong_figure_is_found(text, wrong):
    assert len(without_source(ROOT / "docs" / "page.md", f"# Page\n\n{text}\n")) == wrong


@pytest.mark.parametrize(
    "command",
    [
        "foveate evil",
        "foveate eval --kep 3",
        "foveate train glimpses",
        "python benchmarks/none.py",
        "python -m foveate.none",
        "python benchmarks/predicted.py --fast",
    ],
)
def test_a_command_that_does_not_exist_is_found(command):
    assert cannot_run(command)
