"""Links what a project declares, and what that needs in turn, from this environment into another one; no more.

A dependency that was forgotten in pyproject.toml is then missing there, as it would be for a user.

python .ci/borrow.py PYPROJECT SITE_PACKAGES
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def needed(requirements: list[str]) -> dict[str, Distribution]:
    """Each distribution that is needed for them, extras that are asked for included."""
    found: dict[str, Distribution] = {}
    open_ones, seen = [(text, "") for text in requirements], set()
    while open_ones:
        text, extra = open_ones.pop()
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        found[wanted.name] = distribution(wanted.name)
        for part in {"", *wanted.extras} - {part for name, part in seen if name == wanted.name}:
            seen.add((wanted.name, part))
            open_ones += [(text, part) for text in found[wanted.name].requires or []]
    return found


def main(pyproject: str, site: str) -> None:
    with open(pyproject, "rb") as file:
        found = needed(tomllib.load(file)["project"]["dependencies"])
    for name, dist in found.items():
        if dist.files is None:
            sys.exit(f"{name} does not say which files it has")
        for top in {file.parts[0] for file in dist.files} - {"..", "__pycache__"}:
            source, link = Path(str(dist.locate_file(top))), Path(site) / top
            if source.exists() and not link.exists():
                link.symlink_to(source)
    print(f"borrowed: {', '.join(sorted(found))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
