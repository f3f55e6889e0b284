"""Write docs/models.md out of foveate's `tested.json`: `python -m tests.ways.page`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from foveate.families import FAMILIES
from foveate.families.tested import WORKS, cells_of, recorded, release
from tests.ways.ways import Way, load_ways, variants

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
TITLES = {"backends": "Attention backends", "ways": "Ways of generating", "holding": "Ways of holding a model"}
ABREAST = 8  # families in one table
INTRODUCTION = """# Models, and every way to run them

What the tests found, made by `python -m tests.ways.page` from what `python -m tests.ways.record` recorded; do not edit
it by hand. `foveate list models` prints the short form, with `--json FILE` every cell.

Each cell is a run of a tiny model of the real class with random weights, on CPU. It works if the pruned run's logits
are those of the dense model in which the dropped tokens are masked (within 1e-4), or, where that is as strong, if the
run equals a plain pruned one. A new way or family that has no cell fails the tests.

| in a cell | means |
|---|---|
| ✓ | works |
| ✗ and a number | refused with one clear error, before anything is changed; its sentence is under [Notes](#notes) |
| – and a number | makes no sense here; the reason is under [Notes](#notes) |
"""


class Notes:
    """Sentences, each numbered when it is first needed."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, cell: str) -> str:
        """The sign that stands for a cell."""
        if cell == WORKS:
            return "✓"
        kind, _, sentence = cell.partition(": ")
        number = self.numbers.setdefault(sentence, len(self.numbers) + 1)
        return f"{'✗' if kind == 'refused' else '–'} {number}"


def page() -> str:
    """The page."""
    ways, data, notes = load_ways(), recorded(), Notes()
    newest = max(data, key=release)
    parts = [INTRODUCTION, _families(data), f"Below: transformers {newest}.\n"]
    for table, title in TITLES.items():
        columns = [way for way in ways.values() if way.table == table]
        if columns:
            parts += [f"## {title}\n", *_matrix(data[newest]["families"], table, columns, notes)]
            parts += _described(columns)
    parts += [_older(data, older, newest, notes) for older in data if older != newest]
    parts += ["## Notes\n", "".join(f"{number}. {text}\n" for text, number in notes.numbers.items())]
    return "\n".join(parts)


def _families(data: dict[str, Any]) -> str:
    torch = ", ".join(sorted({run["torch"] for run in data.values()}))
    rows = []
    for name, family in FAMILIES.items():
        cells = cells_of(name)
        newest = cells[max(cells, key=release)]
        backends = ", ".join(backend for backend, cell in newest["backends"].items() if cell == WORKS)
        rows.append([family.title, f"`{name}`", f"`{family.example}`", ", ".join(cells), backends])
    heads = ["family", "`model_type`", "example", "tested with transformers", "attention backends"]
    others = "".join(f"- `{name}`: `{family}` in another build\n" for name, family in variants().items())
    below = f"\nBelow, too:\n\n{others}" if others else ""
    return f"## Families\n\nWith torch {torch}.\n\n" + _table(heads, rows) + below


def _matrix(cells: dict[str, Any], table: str, columns: Sequence[Way], notes: Notes) -> list[str]:
    names = list(cells)
    found = []
    for start in range(0, len(names), ABREAST):
        part = names[start : start + ABREAST]
        rows = [[way.name, *(notes.mark(cells[name][table][way.name]) for name in part)] for way in columns]
        found.append(_table(["way", *(f"`{name}`" for name in part)], rows))
    return found


def _described(columns: Sequence[Way]) -> list[str]:
    """What each way is, from the first paragraph of its docstring."""
    said = [(way.name, " ".join((way.run.__doc__ or "").split("\n\n")[0].split())) for way in columns]
    rows = [[name, text] for name, text in said if text]
    return [_table(["way", "what is run"], rows)] if rows else []


def _older(data: dict[str, Any], older: str, newest: str, notes: Notes) -> str:
    """What an older release does otherwise."""
    now, then = data[newest]["families"], data[older]["families"]
    absent = [f"`{name}`" for name in now if name not in then]
    rows = [
        [f"`{family}`", way, notes.mark(cell)]
        for family, tables in then.items()
        for table, cells in tables.items()
        for way, cell in cells.items()
        if family in now and cell != now[family][table].get(way)
    ]
    parts = [f"## transformers {older}\n"]
    if absent:
        parts.append(f"Not in transformers {older}: {', '.join(absent)}.\n")
    gone = [f"`{name}`" for name in then if name not in now]
    if gone:
        parts.append(f"Here and not in {newest}, where the model itself raises: {', '.join(gone)}.\n")
    left_out = [way.name for way in load_ways().values() if not way.oldest]
    if left_out:
        parts.append(f"Run on {newest} only: {', '.join(left_out)}.\n")
    if rows:
        parts += ["Every cell is as above, but for these:\n", _table(["family", "way", "cell"], rows)]
    else:
        parts.append("Every cell is as above.\n")
    return "\n".join(parts)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
