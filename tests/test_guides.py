"""The guides are followed to the letter, in a copy of this tree: what they add works, and no other step is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".ci", ".github", "benchmarks", "deploy", "docs", "examples", "src", "tests")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"`((?:src|tests|docs)/[\w./-]+\.\w+)`")


@pytest.fixture
def tree(tmp_path):
    """A copy of all that a guide can ask to change, and of what the tests read."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for folder in FOLDERS:
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (path for path in ROOT.iterdir() if path.is_file()):
        shutil.copy(file, copy)
    return copy


def python(tree: Path, *arguments: str) -> str:
    """Run Python in the copy, on the copy's own source."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(arguments)}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def follow(page: str, tree: Path, without: tuple[str, ...] = ()) -> None:
    """Do what a page says.

    A block under a line with nothing but a file's name is that file; a diff changes the file that was named last; of
    commands, the lines that run Python are run, but for those of the modules in `without`.
    """
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    done = 0
    for block in BLOCK.finditer(text):
        kind, content, before = block[1], block[2], text[: block.start()]
        new = re.search(r"^`([\w./-]+)`:\n\n\Z", before, re.MULTILINE)
        if new:
            path = tree / new[1]
            assert not path.exists(), f"{page} writes over {new[1]}"
            path.write_text(content, encoding="utf-8")
        elif kind == "diff":
            change(tree / FILE.findall(before)[-1], content)
        elif kind == "bash":
            for line in re.findall(r"^\.venv/bin/python (.*)$", content, re.MULTILINE):
                if not {*line.split()} & {*without}:
                    python(tree, *line.split())
        done += bool(new) or kind == "diff"
    assert done >= 4


def change(path: Path, diff: str) -> None:
    """Apply a diff whose parts, at lines of `@@`, each stand in the file once."""
    text = path.read_text(encoding="utf-8")
    for part in re.split(r"^@@\n", diff, flags=re.MULTILINE):
        lines = part.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        if lines:
            assert text.count(old) == 1, f"{path.name} has {text.count(old)} times\n{old}"
            text = text.replace(old, "".join(line[1:] for line in lines if line[0] in " +"))
    path.write_text(text, encoding="utf-8")


def passed(tree: Path, files: tuple[str, ...], names: str) -> int:
    """How many tests of the copy with such names passed; none may fail."""
    options = ("-n", "0", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--tb=short")
    return int(re.search(r"(\d+) passed", python(tree, "-m", "pytest", *options, *files, "-k", names))[1])


PAGES = "links or compiles or tables or has_a_page"


@pytest.mark.slow
@pytest.mark.timeout(900)  # in processes of their own, beside whatever else runs
def test_a_method(tree):
    follow("add-a-method.md", tree)
    found = python(tree, "-c", "import foveate; print(foveate.__file__, foveate.Norm(), foveate.make('norm'))")
    assert found.startswith(str(tree))
    assert found.count("Norm(compact_cache=False, min_visual=0, keep=0.22, layer=2, per='prompt', power=2.0)") == 2
    tests = (
        "laws/test_laws.py",
        "pruners/test_options.py",
        "pruners/test_choice.py",
        "test_docs.py",
        "test_import.py",
    )
    files = tuple(f"tests/{name}" for name in tests)
    laws = "norm and (llava-sdpa or qwen2_5_vl-eager or test_options or test_choice)"
    assert passed(tree, files, f"({laws}) or {PAGES} or public_name or is_public or registry") > 80
    assert "[`norm`](src/foveate/pruners/norm.py) | the largest hidden states |" in (tree / "README.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # in processes of their own, beside whatever else runs
def test_a_family(tree):
    """Without the record of every way, which takes minutes, and the page made of it: tests/ways has both."""
    follow("add-a-family.md", tree, without=("tests.ways.record", "tests.ways.page"))
    files = ("laws/test_laws.py", "families/test_families.py", "families/test_grids.py", "families/test_refused.py")
    laws = "janus and (test_parts or per_image or janus-sdpa-ragged or test_grids)"
    names = f"({laws}) or test_every_listed or test_every_model_type or test_none_is_both or {PAGES}"
    assert passed(tree, (*(f"tests/{name}" for name in files), "tests/test_docs.py"), names) > 50
    assert "| Janus-Pro | `janus` | `deepseek-community/Janus-Pro-1B` |" in (tree / "README.md").read_text("utf-8")
