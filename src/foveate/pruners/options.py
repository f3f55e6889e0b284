"""Options of methods: the type, the range and the reading of every field, checked here and nowhere else.

A field's type is its annotation: `bool`, `int`, `float`, `str`, `Literal`, a class, tuples of these, and unions with
`|`. What a field holds afterwards is Python's own: numbers of numpy and 0-d tensors are taken as numbers.

No library does this: pydantic refuses 0-d tensors, takes "1" for a number, adds 0.3 s to the import and is no
dependency of torch or transformers; attrs would end `dataclasses.replace` and have every type written twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from foveate.errors import BudgetError
from foveate.tensors import plain_number

BOOLEANS: Mapping[str, bool] = types.MappingProxyType(
    {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
)
INT64 = 2**63  # whole numbers become tensors
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", type(None): "none"}


class _Refused(Exception):
    """A value is not of a kind, or out of range; the text says what would be right."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, and what else holds for a field."""

    at_least: float | None = None
    over: float | None = None
    at_most: float | None = None
    under: float | None = None
    check: Callable[[Any], Any] | None = None

    def holds(self, value: float) -> bool:
        """Whether a number lies inside: NaN never does, and a whole number without an end is one of int64."""
        whole = isinstance(value, int)
        low = self.at_least if self.at_least is not None else -INT64 if whole else -math.inf
        high = self.at_most if self.at_most is not None else INT64 - 1 if whole else math.inf
        inside = (self.over is None or value > self.over) and (self.under is None or value < self.under)
        return low <= value <= high and inside

    def described(self, word: str) -> str:
        """`word`, such as "a number", with the ends."""
        given = {"at least": self.at_least, "over": self.over, "at most": self.at_most, "under": self.under}
        ends = " and ".join(f"{what} {end}" for what, end in given.items() if end not in (None, math.inf))
        finite = word.replace("a ", "a finite ", 1) if self.under == math.inf else word
        return f"{finite}{' of' if ends.startswith('at') else ''} {ends}".rstrip()


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    at_least: float | None = None,
    over: float | None = None,
    at_most: float | None = None,
    under: float | None = None,
    check: Callable[[Any], Any] | None = None,
) -> Any:
    """Dataclass field of a method, checked by its annotation and this range when a method is made.

    Parameters
    ----------
    help
        The one line that `foveate list methods` prints.
    at_least, over, at_most, under
        Ends of the range of a number; `under=math.inf`: any finite one.
    check
        Takes the value, if it is not None where the annotation allows None, instead of the annotation, and returns
        what the field is to hold or raises `BudgetError`.
    """
    limits = Range(at_least, over, at_most, under, check)
    return dataclasses.field(default=default, metadata={"help": help, "range": limits})


def settle(made: Any, owner: str) -> None:
    """Bring every field of a frozen dataclass to its type, in its `__post_init__`.

    Parameters
    ----------
    owner
        Who has the options, for the message.

    Raises
    ------
    BudgetError
        When a value is of another kind or out of range; the message names the option and what would be right.
    """
    known: Any = type(made)
    for name, (kind, limits) in fields_of(known).items():
        value = getattr(made, name)
        arms = typing.get_args(kind) if _is_union(kind) else (kind,)
        if limits.check is not None and not (value is None and type(None) in arms):
            try:
                found = limits.check(value)
            except BudgetError as error:
                raise BudgetError(f"{owner}: {str(error).removeprefix(f'{owner}: ')}") from None
        else:
            try:
                found = _settled(value, kind, limits)
            except _Refused as refused:
                raise BudgetError(f"{owner}: {name} must be {refused}, got {value!r}") from None
        object.__setattr__(made, name, found)


@functools.cache
def fields_of(owner: type) -> dict[str, tuple[Any, Range]]:
    """Type and range of each field of a dataclass; `Any` where an annotation is not to be resolved.

    A field that a subclass gives another default without `option` keeps its range.
    """
    found = {}
    for item in dataclasses.fields(owner):
        home = next(one for one in owner.__mro__ if item.name in inspect.get_annotations(one))
        declared = [vars(one).get("__dataclass_fields__", {}).get(item.name) for one in owner.__mro__]
        ranges = (one.metadata["range"] for one in declared if one is not None and "range" in one.metadata)
        kind: Any = item.type
        if isinstance(kind, str):
            try:
                kind = eval(kind, dict(vars(sys.modules[home.__module__])), dict(vars(home)))
            except (NameError, KeyError, AttributeError):  # imported for type checkers alone
                kind = Any
        if item.default is None and kind is not Any:
            kind = typing.Optional[kind]  # noqa: UP045  # a default is always taken, whatever the annotation says
        found[item.name] = (kind, next(ranges, Range()))
    return found


def _settled(value: Any, kind: Any, limits: Range) -> Any:
    if kind is Any:
        return value
    if _is_union(kind):
        arms = typing.get_args(kind)
        # a text is read as a boolean only where it can be nothing else
        for arm in sorted(arms, key=lambda arm: arm is bool):
            try:
                return _settled(value, arm, limits)
            except _Refused:
                continue
        raise _Refused(_described(kind, limits))
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        chosen = [one for one in typing.get_args(kind) if isinstance(value, type(one)) and one == value]
        if not chosen:
            raise _Refused(_described(kind, limits))
        return chosen[0]
    if origin is tuple:
        return _tuple(value, kind, limits)
    if origin is None:
        origin = type(None)
    if origin in (bool, int, float):
        return _number(plain_number(value), origin, limits)
    if isinstance(origin, type) and not isinstance(value, origin):
        raise _Refused(_described(kind, limits))
    return value


def _number(value: Any, kind: type, limits: Range) -> Any:
    if kind is bool:
        text = str(value).strip().lower()
        if isinstance(value, (bool, int, str)) and text in BOOLEANS:
            return BOOLEANS[text]
    elif isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            number = kind(value)
            if limits.holds(number):
                return number
    raise _Refused(_described(kind, limits))


def _tuple(value: Any, kind: Any, limits: Range) -> tuple[Any, ...]:
    """Items from a tuple or list, or from a text with commas between them, such as `tl,br` or `(tl,br)`."""
    items = (
        [one.strip() for one in value.strip("()[] ").split(",") if one.strip()] if isinstance(value, str) else value
    )
    inside = typing.get_args(kind)
    if not isinstance(items, (tuple, list)) or len(inside) != 2 or inside[1] is not Ellipsis:
        raise _Refused(_described(kind, limits))
    return tuple(_settled(item, inside[0], limits) for item in items)


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union


def _described(kind: Any, limits: Range) -> str:
    if _is_union(kind):
        return " or ".join(_described(arm, limits) for arm in typing.get_args(kind))
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        names = typing.get_args(kind)
        return f"one of {', '.join(map(str, names))}" if len(names) > 1 else f"{names[0]}"
    if origin is tuple:
        return f"several, each {_described(typing.get_args(kind)[0], limits)}"
    word = _WORDS.get(origin, getattr(origin, "__name__", str(origin)))
    return limits.described(word) if origin in (int, float) else word
