"""docs/traps.md: every trap names a test that guards it, and every test named exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.ways.ways import load_ways

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    cells
    for line in (ROOT / "docs" / "traps.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and (cells := [cell.strip() for cell in line.strip("| ").split(" | ")])[0] != "trap"
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_test_guards_it(row):
    assert len(row) == 4
    assert all(row)
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[3])
    ways = re.findall(r"way `([^`]+)`", row[3])
    assert tests or ways, "nothing guards this trap"
    assert len(tests) + len(ways) == row[3].count("`") // 2, "a guard of an odd form"
    for file, name in tests:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (
            f"no {name} in {file}"
        )
    assert set(ways) <= set(load_ways())


def test_there_are_traps():
    assert len(ROWS) > 30
