"""Write what the ways do into foveate's `tested.json`, for the installed transformers: `python -m tests.ways.record`.

Names of families and ways as arguments select what is run again; the other cells stay. A cell that fails is left
blank, and its error is printed.
"""

from __future__ import annotations

import fcntl
import json
import sys
import traceback
from typing import Any

import torch
import transformers

from foveate.families.tested import FILE, recorded, release
from tests.ways.ways import families, load_ways, outcome


def main(chosen: set[str]) -> int:
    """Run the ways and write the file, family by family; the number of cells that failed."""
    torch.set_num_threads(1)
    ways, version = load_ways(), transformers.__version__
    unknown = chosen - {*families(), *ways}
    if unknown:
        raise SystemExit(f"no such family or way: {', '.join(sorted(unknown))}")
    data = _read()
    newest = version == max([*data, version], key=release)
    before, failed = data.get(version, {}).get("families", {}), 0
    for family in families():
        cells: dict[str, dict[str, str]] = {}
        for name, way in ways.items():
            if not (newest or way.oldest):
                continue
            table = cells.setdefault(way.table, {})
            old = before.get(family, {}).get(way.table, {}).get(name)
            if chosen and not {family, name} & chosen and old is not None:
                table[name] = old
                continue
            try:
                table[name] = outcome(family, name)
            except Exception:  # noqa: BLE001 - printed and counted
                failed += 1
                print(f"\n== {family}, {name}\n{traceback.format_exc()}", file=sys.stderr)
        _write(version, family, cells)
    print(f"{FILE}: transformers {version}, {len(families())} families, {failed} failed")
    return failed


def _read() -> dict[str, Any]:
    return recorded() if FILE.exists() else {}


def _write(version: str, family: str, cells: dict[str, dict[str, str]]) -> None:
    """Put in one family's cells; those of other releases may be recorded at the same time."""
    with open(__file__, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        data = _read()
        rows = data.get(version, {}).get("families", {})
        rows = {name: rows.get(name) for name in families()} | {family: cells}
        rows = {name: row for name, row in rows.items() if row is not None}
        data[version] = {"torch": torch.__version__.split("+")[0], "families": rows}
        ordered = {version: data[version] for version in sorted(data, key=release)}
        FILE.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(1 if main(set(sys.argv[1:])) else 0)
