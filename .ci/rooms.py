"""The drawing of docs/architecture.md, made from the imports of src/foveate: `python .ci/rooms.py [--write]`."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, PAGE = ROOT / "src", ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: made by .ci/rooms.py -->", "<!-- /rooms -->"
TRAINING = ("tiny/training",)  # a room of its own: what answers never imports it
SMALL = ("errors", "tensors", "__main__")  # every room may import these


def imports(path: Path) -> set[str]:
    """Rooms that a module imports when it runs, not those that only a type checker needs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing:
            parts = node.module.split(".")
            if parts[0] == "foveate":
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def rooms() -> dict[str, set[str]]:
    """For each room, the rooms that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    names = {path.name for path in (SOURCE / "foveate").iterdir() if (path / "__init__.py").is_file()}
    for path in sorted((SOURCE / "foveate").rglob("*.py")):
        place = path.relative_to(SOURCE / "foveate")
        room = "tiny_training" if place.parent.as_posix() in TRAINING else place.parts[0]
        if place.parts[0] in names:
            found[room] |= (imports(path) & names) - {room, *SMALL}
    return found


def drawing() -> str:
    """The rooms as a Mermaid graph; an arrow is drawn where no other way leads there."""
    direct = rooms()

    def reached(room: str, without: str = "") -> set[str]:
        todo, seen = [one for one in direct[room] if one != without], set()
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += direct[one]
        return seen

    arrows = [
        f"    {room} --> {other}"
        for room in sorted(direct)
        for other in sorted(direct[room])
        if other not in reached(room, without=other)
    ]
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


def updated(page: str) -> str:
    """The page with the drawing of now."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + drawing() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(drawing())
