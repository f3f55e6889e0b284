"""The tables of methods and families in README.md and docs/methods, made from the registries, and of the first
embedded model beside the present one in docs/fair-judge.md, made from result files.

python .ci/tables.py --write puts them in; without --write it prints which pages are stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from judges import comparisons

from foveate.cli.list import DEPTH, methods, models
from foveate.pruners import METHODS as METHODS_BY_NAME

ROOT = Path(__file__).parents[1]
README, METHODS = ROOT / "README.md", ROOT / "docs" / "methods" / "README.md"
JUDGE = ROOT / "docs" / "fair-judge.md"


def tables() -> dict[Path, list[str]]:
    """The tables of each page."""
    rows = methods()
    papers = [
        (
            f"[`{row['name']}`]({_source(row['name'])})",
            row["summary"],
            f"{_link(row)}; its [page](docs/methods/{row['name']}.md)",
        )
        for row in rows
    ]
    families = [(row["family"], f"`{row['model_type']}`", f"`{row['example']}`") for row in models()]
    places = [
        (
            f"[`{row['name']}`]({row['name']}.md)",
            row["summary"],
            ", ".join(map(str, row["stage"] or ["by model"])),
            row["needs"] or "–",
        )
        for row in rows
    ]
    return {
        README: [
            _table(("name", "keeps", "paper"), papers),
            _table(("family", "`model_type`", "example"), families),
        ],
        METHODS: [_table(("method", "keeps", f"cuts before layer, of {DEPTH}, by default", "needs"), places)],
        JUDGE: list(comparisons()),
    }


def updated(page: str, table: str) -> str:
    """The page with this table in place of the one that has the same head."""
    head = table.splitlines()[0] + "\n"
    if page.count(head) != 1:
        raise SystemExit(f"not one table but {page.count(head)} of {head.strip()}")
    before, rest = page.split(head)
    lines = rest.splitlines(keepends=True)
    after = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return before + table + "".join(lines[after:])


def stale() -> dict[Path, str]:
    """The pages that are not as they should be, and how they should be."""
    found = {}
    for path, made in tables().items():
        page = there = path.read_text(encoding="utf-8")
        for table in made:
            page = updated(page, table)
        if page != there:
            found[path] = page
    return found


def _source(name: str) -> str:
    return f"src/{METHODS_BY_NAME[name].__module__.replace('.', '/')}.py"


def _link(row: dict) -> str:
    return f"[{row['paper']}]({row['url']})" if row["url"] else row["paper"]


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, *rows)).replace(
        "\n", "\n|" + "---|" * len(heads) + "\n", 1
    )


if __name__ == "__main__":
    for path, page in stale().items():
        if "--write" in sys.argv:
            path.write_text(page, encoding="utf-8")
        else:
            print(f"stale: {path.relative_to(ROOT)}")
