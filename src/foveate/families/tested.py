"""What the tests found to work for each family, with which versions; recorded by `python -m tests.ways.record`.

`tested.json` holds, for each release of transformers that was tested, the cells of the tables: for each family, for
each attention backend, way of generating and way of holding a model, "works", "refused: …" with the sentence of the
error, or "not applicable: …" with the reason. The tests run every cell again and compare.
"""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("tested.json")
WORKS = "works"


def recorded() -> dict[str, Any]:
    """Releases of transformers, oldest first: for each the torch it was tested with, and the families' cells."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return {version: found[version] for version in sorted(found, key=release)}


def newest_tested() -> str:
    """The newest release of transformers that foveate was tested with."""
    return [*recorded()][-1]


@functools.cache
def warn_of_untested() -> None:
    """Say, once in a process, that the installed transformers is newer than every release that was tested."""
    import transformers

    newest = newest_tested()
    if release(transformers.__version__) > release(newest):
        warnings.warn(
            f"transformers {transformers.__version__} is newer than {newest}, the newest that foveate was tested "
            "with: `foveate check MODEL` checks whether pruning is exact on it",
            stacklevel=3,
        )


def cells_of(model_type: str) -> dict[str, dict[str, Any]]:
    """For each release that was tested with this family, oldest first: torch, and the cells of each table."""
    return {
        version: {"torch": run["torch"], **run["families"][model_type]}
        for version, run in recorded().items()
        if model_type in run["families"]
    }


def release(version: str) -> tuple[int, ...]:
    """A version as numbers that can be compared: "5.23.0" is (5, 23, 0)."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
