"""Pruning methods by name; one file each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from foveate.errors import UnknownMethodError
from foveate.pruners.base import PromptRows, Pruner, ScorePruner, Selection, SingleStagePruner, VisualTokens
from foveate.pruners.btp.method import BTP
from foveate.pruners.btp.stages import BTPStage
from foveate.pruners.divprune import DivPrune
from foveate.pruners.fastv import FastV
from foveate.pruners.glimpseprune.method import GlimpsePrune
from foveate.pruners.greedyprune import GreedyPrune
from foveate.pruners.pyramiddrop import PyramidDrop
from foveate.pruners.random import Random
from foveate.pruners.saving import load

METHODS: Mapping[str, type[Pruner]] = MappingProxyType(
    {method.name: method for method in (Random, FastV, DivPrune, GreedyPrune, BTP, GlimpsePrune, PyramidDrop)}
)

__all__ = [
    "BTP",
    "METHODS",
    "BTPStage",
    "DivPrune",
    "FastV",
    "GlimpsePrune",
    "GreedyPrune",
    "PromptRows",
    "Pruner",
    "PyramidDrop",
    "Random",
    "ScorePruner",
    "Selection",
    "SingleStagePruner",
    "VisualTokens",
    "load",
    "make",
]


def make(name: str, **options: Any) -> Pruner:
    """Build a pruner by name, as configs and the command line do.

    Raises
    ------
    UnknownMethodError
        When no method has that name or the method has no such option; the message lists what exists.
    BudgetError
        When an option's value makes no sense.
    """
    if name not in METHODS:
        raise UnknownMethodError(f"no method is called {name!r}; there are {', '.join(METHODS)}")
    known = [field.name for field in dataclasses.fields(METHODS[name])]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UnknownMethodError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return METHODS[name](**options)
