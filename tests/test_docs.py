"""README and docs: links lead somewhere, examples run, the two commands are those that CI runs."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

from foveate.errors import UnsupportedModelError
from foveate.families import FAMILIES
from foveate.pruners import METHODS
from foveate.tiny.model import WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [ROOT / "docs" / name for name in ("attach.md", "several-turns.md", "add-a-method.md", "add-a-family.md")]

page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@page
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"


@page
def test_python_compiles(page):
    for number, code in enumerate(blocks(page, every=True)):
        compile(code, f"{page.name}, block {number}", "exec")


@pytest.mark.skipif(not (WEIGHTS / "model.safetensors").is_file(), reason="the embedded model has no weights here")
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", example)  # where dataclasses look for the module of a class
    for number, code in enumerate(blocks(page)):
        exec(compile(code, f"{page.name}, block {number}", "exec"), vars(example))


def test_the_family_of_the_page_is_needed():
    """With the default in its place the page's own check stops."""
    family, check, _ = blocks(ROOT / "docs" / "add-a-family.md")
    default = check.replace("JANUS", "Family('janus', 'Janus-Pro', '')")
    with pytest.raises(UnsupportedModelError, match="projector"):
        exec(family + default, vars(types.ModuleType("example")))


def blocks(page: Path, every: bool = False) -> list[str]:
    """The Python of a page, in order; without those under a no-run comment unless `every`."""
    found = re.findall(r"(<!-- no-run -->\n)?```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [code for skip, code in found if every or not skip]


def tables() -> types.ModuleType:
    """The script that makes the tables."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / ".ci" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_list_what_exists():
    module = tables()
    assert not module.stale(), "run `python .ci/tables.py --write`"
    methods, families = module.tables()[ROOT / "README.md"]
    assert re.findall(r"^\| \[`(\w+)`\]", methods, flags=re.MULTILINE) == [*METHODS]
    assert re.findall(r"^\| [^|]+ \| `(\w+)` \|", families, flags=re.MULTILINE) == ["model_type", *FAMILIES]


def test_a_stale_table_is_found():
    module = tables()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for table in module.tables()[ROOT / "README.md"]:
        row = table.splitlines(keepends=True)[-1]
        for wrong in (text.replace(row, ""), text.replace(row, row + row)):
            assert wrong != text
            assert module.updated(wrong, table) == text


def test_every_method_has_a_page():
    for name in METHODS:
        assert (ROOT / "docs" / "methods" / f"{name}.md").is_file(), name


def test_every_method_says_what_it_was_compared_with():
    """A row each, with the test that has its reference, and a column for the paper's figures."""
    page = ROOT / "docs" / "methods" / "compared.md"
    rows = [line.strip("| \n").split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if "|" in line]
    head, _, *rows = rows
    assert head[3].startswith("paper says")
    assert [re.match(r"\[`(\w+)`\]", row[0])[1] for row in rows] == [*METHODS]
    for name, code, compared, figures in rows:
        assert code.startswith(("yes", "no", "a baseline")), name
        assert figures, name
        files = [(page.parent / link).resolve() for link in re.findall(r"\((\S+\.py)\)", compared)]
        method = METHODS[re.match(r"\[`(\w+)`\]", name)[1]].__name__
        assert method in "".join(file.read_text(encoding="utf-8") for file in files), name


def test_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [block.strip() for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)]
    make, demo, test = "python3.11 -m venv .venv", "-c constraints.txt . ", "-c constraints.txt -e '.[test]' "
    assert commands[0] == f"{make} && .venv/bin/pip install {demo}&& .venv/bin/foveate demo"
    assert commands[1] == f"{make} && .venv/bin/pip install {test}&& .venv/bin/pytest"
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f'pip" install --quiet {test.strip()}' in ci  # what CI installs is what README says
