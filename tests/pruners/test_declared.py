"""What methods declare: defaults, ranges and the numbers of their papers, as `declared.txt` lists them.

A changed number is found here and nowhere else, as other tests take defaults and ranges from the code. To change one
on purpose, change its line.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import numbers
import pkgutil
from pathlib import Path

from foveate import pruners
from foveate.pruners.btp.stages import BTPStage
from foveate.pruners.options import fields_of
from foveate.pruners.registry import METHODS

LISTED = Path(__file__).with_name("declared.txt")
# how much is worked on at once, which decides no choice
AT_A_TIME = {"ROWS", "CROWD", "CROWDS", "PICKS", "LISTED", "ROUND", "WORTH", "TYPE_CHECKING"}


def plain(value: object) -> bool:
    """A number, or tuples and mappings of what is plain."""
    if isinstance(value, dict):
        return all(map(plain, (*value.keys(), *value.values())))
    if isinstance(value, (tuple, list)):
        return all(map(plain, value))
    return isinstance(value, (numbers.Number, str, type(None)))


def of_method(name: str, owner: type) -> str:
    """Its options with their ranges, and its facts, in one line."""
    default = {field.name: field.default for field in dataclasses.fields(owner)}
    words = []
    for option, (_, limits) in fields_of(owner).items():
        given = "needed" if default[option] is dataclasses.MISSING else repr(default[option])
        words.append(f"{option} = {given} {limits.described('').removeprefix(' of').strip()}".rstrip())
    known = {fact for base in owner.__mro__ for fact in inspect.get_annotations(base)} - {*default}
    facts = {fact: getattr(owner, fact, None) for fact in sorted(known)}
    words += [f"{fact} {value!r}" for fact, value in facts.items() if isinstance(value, (bool, int))]
    return f"{name}: {'; '.join(words)}"


def declared() -> list[str]:
    """A line for each method, and one for each constant."""
    lines = [of_method(name, owner) for name, owner in sorted({**METHODS, "BTPStage": BTPStage}.items())]
    for module in pkgutil.walk_packages(pruners.__path__, "foveate.pruners."):
        for name, value in vars(importlib.import_module(module.name)).items():
            listed = (
                name.strip("_").isupper() and name not in AT_A_TIME and not isinstance(value, str) and plain(value)
            )
            lines += [f"{module.name} {name} = {value!r}"] if listed else []
    return lines


def test_every_default_range_and_number_is_as_listed():
    assert declared() == LISTED.read_text(encoding="utf-8").splitlines()
