"""docs/architecture.md is true: its drawing is that of the imports, and its files are there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_drawing_is_that_of_the_imports():
    spec = importlib.util.spec_from_file_location("rooms", ROOT / ".ci" / "rooms.py")
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    assert rooms.updated(PAGE) == PAGE, "python .ci/rooms.py --write"


def test_every_room_and_file_is_there():
    source = ROOT / "src" / "foveate"
    table = PAGE.split("## One forward pass")[0]
    listed = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    folders = {path.parent.name for path in source.glob("*/__init__.py")}
    assert listed == folders | {"tensors", "torch_state"}
    walk = PAGE.split("## One forward pass")[1].split("## Where")[0]
    for name in re.findall(r"`(\w+\.py)", walk):
        assert (source / "engine" / name).is_file(), name
    for name in re.findall(r"`((?:\w+/)+\w*(?:\.py)?)`", PAGE.split("## Where")[1]):
        assert (source / name).exists(), name
