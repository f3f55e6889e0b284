"""How a method is written on a command line: `greedyprune:layer=0,threshold=0.7`, or the folder of a saved one."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from foveate.errors import BudgetError, UnknownMethodError
from foveate.pruners import registry
from foveate.pruners.base import Pruner
from foveate.pruners.budget import parse_keep


@dataclass(frozen=True)
class MethodSpec:
    """A method's name and the options given to it, not yet made into a pruner.

    Attributes
    ----------
    name
        A name that `foveate.make` knows, or a folder or Hub id that `foveate.load` takes.
    options
        Options by name.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}:{','.join(f'{key}={_written(value)}' for key, value in self.options.items())}"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def brief(pruner: Pruner) -> str:
    """A pruner as its budget and what is not the default, for people; `repr` has it all."""
    options = {item.name: (getattr(pruner, item.name), item.default) for item in fields(pruner) if item.repr}
    told = [f"{name}={value!r}" for name, (value, default) in options.items() if name == "keep" or value != default]
    return f"{type(pruner).__name__}({', '.join(told)})"


def parse_value(text: str) -> Any:
    """The Python value that an option's text stands for; a text that is none stays a text."""
    lowered = text.strip().lower()
    if lowered in {"true", "false", "none"}:
        return {"true": True, "false": False, "none": None}[lowered]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: brackets in brackets, many times
        return text.strip()


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """`["layer=0", "fill=stop"]` as `{"layer": 0, "fill": "stop"}`; `keep` is read as every budget is.

    Raises
    ------
    UnknownMethodError
        When one of them is no option.
    BudgetError
        When `keep` makes no sense, or an option is given twice.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UnknownMethodError(f"'{pair}' is not an option: write it as name=value")
        name = key.strip().replace("-", "_")
        if name in options:
            raise BudgetError(f"{name} is given twice: {options[name]!r}, then {value.strip()!r}")
        made = parse_value(value)
        options[name] = parse_keep(value) if name == "keep" and made is not None else made
    return options


def parse_methods(text: str) -> list[MethodSpec]:
    """The methods of a comma-separated list; `name=value` pieces belong to the method before them.

    Raises
    ------
    UnknownMethodError
        When there is none, one without a name, or an option without a method.
    BudgetError
        When `keep` makes no sense, or an option is given twice.
    """
    specs: list[tuple[str, list[str]]] = []
    for piece in _split_outside_brackets(text):
        head, colon, option = piece.partition(":")
        if "=" in head:
            if not specs:
                raise UnknownMethodError(f"'{piece}' is an option without a method before it")
            specs[-1][1].append(piece)
        else:
            specs.append((head.strip(), [option] if colon else []))
    if not specs or not all(name for name, _ in specs):
        raise UnknownMethodError(f"no method in '{text}'; there are {', '.join(sorted(registry.METHODS))}")
    return [MethodSpec(name, parse_options(options)) for name, options in specs]


def _split_outside_brackets(text: str) -> list[str]:
    pieces, depth, start = [], 0, 0
    for at, char in enumerate(text + ","):
        depth += (char in "([") - (char in ")]")
        if char == "," and (depth == 0 or at == len(text)):
            if text[start:at].strip():
                pieces.append(text[start:at].strip())
            start = at + 1
    return pieces


def is_saved(name: str) -> bool:
    """Whether a name means a saved pruner: a folder that is there, or a Hub id such as `me/my-btp`."""
    if name in registry.SHIPPED:
        return True
    if os.path.isfile(os.path.join(name, "config.json")):  # False too for a name that no file can have
        return True
    return name.count("/") == 1 and not name.startswith((".", "/"))


def build(name: str, options: Mapping[str, Any]) -> Pruner:
    """A pruner by its method's name, or a saved one, with these options.

    Raises
    ------
    UnknownMethodError
        When there is no such method, folder or option.
    BudgetError
        When an option's value makes no sense.
    """
    method = method_class(name)
    if not is_saved(name):
        return registry.make(name, **options)
    registry.check_options(name, method, options)
    return replace(registry.load(name), **options)


def build_with(name: str, options: Mapping[str, Any], keep: float | int | None, usual: float | int) -> Pruner:
    """The pruner that a command was asked for.

    Parameters
    ----------
    keep
        The budget that was given apart, if any.
    usual
        The budget where none was given and the method does not have its own: a saved pruner does, and so do a method
        that finds it and published stages.

    Raises
    ------
    UnknownMethodError, BudgetError
        As `build`.
    """
    if keep is not None and "keep" in options:
        raise BudgetError(f"the budget is given twice: {keep!r} apart, and keep={options['keep']!r} as an option")
    if keep is None and not has_own_budget(name, options) and has_option(method_class(name), "keep"):
        keep = usual
    return build(name, options if keep is None else {"keep": keep, **options})


def has_own_budget(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a method with these options has a budget without being given one."""
    method = method_class(name)
    return is_saved(name) or method.finds_budget or method.brings_budget(options)


def method_class(name: str) -> type[Pruner]:
    """The class of a method, or of a saved pruner.

    Raises
    ------
    UnknownMethodError
        When there is no such method or folder.
    """
    if name in registry.METHODS:
        return registry.METHODS[name]
    if is_saved(name):
        return type(registry.load(name))
    raise UnknownMethodError(
        f"no method '{name}', and no folder of a saved one; there are {', '.join(sorted(registry.METHODS))}"
    )


def has_option(method: type[Pruner], option: str) -> bool:
    """Whether a method has an option of this name."""
    return any(item.name == option for item in fields(method))
