"""Tiny models of the real classes, one file for each group of families; `TINY` holds them all by name.

A file of this folder describes its families in a dictionary `FAMILIES`; nothing else need be listed anywhere.
"""

from __future__ import annotations

import importlib
import pkgutil

from tests.models.base import TinyFamily

_NONE = ("base", "build", "images", "sizes")  # these describe no family
_MADE: dict[str, TinyFamily] = {}
for _module in sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NONE):
    _MADE |= vars(importlib.import_module(f"{__name__}.{_module}")).get("FAMILIES", {})

TINY = {name: family for name, family in _MADE.items() if family.available()}
TINY_ABSENT = {name for name, family in _MADE.items() if name not in TINY and not family.variant}  # it is too old
