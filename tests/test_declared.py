"""What methods declare: defaults, ranges and the numbers of their papers; and the numbers of engine and selection.

`declared.txt` lists them.

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

from foveate import engine, pruners, select
from foveate.pruners.btp.stages import BTPStage
from foveate.pruners.options import fields_of
from foveate.pruners.registry import METHODS

LISTED = Path(__file__).with_name("declared.txt")
# how much is worked on at once, which decides no choice: names in these modules, or in any
AT_A_TIME = {
    "CROWD", "CROWDS", "LISTED", "PICKS", "ROUND", "ROWS", "WORTH", "attention_rows.KEYS", "attention_rows.QUERIES",
    "cosine.BLOCK", "cosine.PREFIX", "diversity.CHUNK", "isolated.BLOCK", "isolated.CHUNK", "isolated.FEW",
    "isolated.SHRUNK", "lazy_greedy.CHUNK", "lazy_greedy.MANY", "lazy_greedy.READY", "nms.BLOCK", "nms.ROUNDS",
    "nms.WALK_BLOCK",
}  # fmt: skip


def plain(value: object) -> bool:
    """A number, or tuples and mappings of what is plain."""
    if isinstance(value, dict):
        return all(map(plain, (*value.keys(), *value.values())))
    if isinstance(value, (tuple, list)):
        return all(map(plain, value))
    return isinstance(value, (numbers.Number, str, type(None)))


def has_number(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(has_number, (*value.keys(), *value.values())))
    return any(map(has_number, value)) if isinstance(value, (tuple, list)) else isinstance(value, numbers.Number)


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


def last(name: str) -> str:
    return name.rpartition(".")[2]


def declared() -> list[str]:
    """A line for each method, and one for each constant."""
    lines = [of_method(name, owner) for name, owner in sorted({**METHODS, "BTPStage": BTPStage}.items())]
    for room in (pruners, select, engine):
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            of_no_choice = {last(name) for name in AT_A_TIME if name.startswith(last(module.name) + ".")}
            for name, value in vars(importlib.import_module(module.name)).items():
                if name.strip("_").isupper() and name not in AT_A_TIME | of_no_choice | {"TYPE_CHECKING"}:
                    told = plain(value) and (has_number(value) or (room is pruners and not isinstance(value, str)))
                    lines += [f"{module.name} {name} = {value!r}"] if told else []
    return lines


def test_every_default_range_and_number_is_as_listed():
    assert declared() == LISTED.read_text(encoding="utf-8").splitlines()


def test_what_can_be_changed_after_it_was_made_is_as_listed():
    """Methods and their settings cannot: they are shared, compared and saved."""
    changeable = set()
    for room in (pruners, select, engine):
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            for one in vars(importlib.import_module(module.name)).values():
                if dataclasses.is_dataclass(one) and isinstance(one, type) and one.__module__ == module.name:
                    changeable |= set() if one.__dataclass_params__.frozen else {f"{module.name}.{one.__name__}"}
    records = ("StageRecord", "PrefillRecord", "Prompt", "Tapped", "ForwardPass")
    assert changeable == {
        *(f"foveate.engine.forward_pass.{name}" for name in records),
        "foveate.engine.vision_features._Call",
        "foveate.engine.vision_features._Seen",
    }
