"""The registry of ways: how a pruned model is run, held or made, each checked for every family.

A way is a function `(family) -> None` under `@way("its name")`. It builds the family's tiny model, runs it pruned and
holds the result against the slow reference (`tests/ways/checks.py`) or, where that is as good, against a plain pruned
run. What it does is the cell of the table:

* it returns: "works";
* a `FoveateError` leaves it: "refused: " and its sentence;
* it raises `NotApplicable("reason")`, where the way makes no sense for the family: "not applicable: " and the reason;
* anything else is a failure: the cell stays blank, and the test fails.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from foveate.errors import FoveateError
from foveate.families import FAMILIES
from foveate.families.tested import WORKS
from tests.models.build import BUILDERS

Table = Literal["backends", "ways", "holding"]
MODULES = ("backends", "generating", "caches", "turns", "holding")  # of this package, in the order of the tables


class NotApplicable(Exception):
    """The way makes no sense for this family, or not with this transformers; the message says why."""


@dataclass(frozen=True)
class Way:
    """One column: a function that runs a family in this way.

    Attributes
    ----------
    table
        Which table its column is in: attention backends, ways of generating, ways of holding a model.
    oldest
        Whether it is run on the oldest transformers, too.
    """

    name: str
    run: Callable[[str], None]
    table: Table
    oldest: bool


WAYS: dict[str, Way] = {}


def way(name: str, table: Table = "ways", oldest: bool = True) -> Callable[[Callable[[str], None]], Callable]:
    """Register the function below as the way `name`."""

    def register(run: Callable[[str], None]) -> Callable[[str], None]:
        if name in WAYS:
            raise ValueError(f"there are two ways called {name!r}")
        WAYS[name] = Way(name, run, table, oldest)
        return run

    return register


def load_ways() -> dict[str, Way]:
    """Every way of this package."""
    for module in MODULES:
        try:
            importlib.import_module(f"tests.ways.{module}")
        except ModuleNotFoundError as error:
            if error.name != f"tests.ways.{module}":
                raise
    return WAYS


def families() -> list[str]:
    """The families that the installed transformers has, in foveate's order, and behind them their variants."""
    return [*(family for family in FAMILIES if family in BUILDERS), *variants()]


def variants() -> dict[str, str]:
    """Tiny models that are another build of a family, such as one with another vision encoder: its family."""
    return {name: make()[1].model_type for name, make in BUILDERS.items() if name not in FAMILIES}


def outcome(family: str, name: str) -> str:
    """The cell of `family` and the way `name`; raises where it is a failure."""
    try:
        WAYS[name].run(family)
    except NotApplicable as reason:
        return f"not applicable: {reason}"
    except FoveateError as error:
        return f"refused: {' '.join(str(error).split())}"
    return WORKS
