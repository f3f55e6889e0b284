"""How methods are written: `greedyprune:layer=0,threshold=0.7`, a saved one's folder, `divprune:keep=0.5+btp`."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from foveate.errors import BudgetError, UnknownMethodError
from foveate.pruners import registry
from foveate.pruners.base import Pruner
from foveate.pruners.budget import parse_keep
from foveate.pruners.chain import Chain
from foveate.pruners.saving import CONFIG

PLUS = re.compile(r"\s*\+\s*(?=[A-Za-z_~./])")  # between the methods of a chain, and not in a number


@dataclass(frozen=True)
class MethodSpec:
    """A method's name and the options given to it, not yet made into a pruner.

    Attributes
    ----------
    name
        A name that `foveate.make` knows, a folder or Hub id that `foveate.load` takes, or several of these with their
        options and `+` between them: a chain.
    options
        Options by name; of a chain, its own.
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
    if isinstance(pruner, Chain):
        budget = [] if pruner.keep is None else [f"keep={pruner.keep!r}"]
        return f"Chain({', '.join([*map(brief, pruner.methods), *budget])})"
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
    """The methods of a comma-separated list; `name=value` pieces belong to the method before them, `+` joins a chain.

    Raises
    ------
    UnknownMethodError
        When there is none, one without a name, or an option without a method.
    BudgetError
        When `keep` makes no sense, or an option is given twice.
    """
    chains = _parse(text)
    return [one[0] if len(one) == 1 else MethodSpec("+".join(map(str, one))) for one in chains]


def _parse(text: str) -> list[list[MethodSpec]]:
    """The methods of each chain of a list; what is no chain is one of a single method."""
    chains: list[list[tuple[str, list[str]]]] = []
    for piece in _split_outside_brackets(text):
        first, *others = [piece] if _is_folder(piece.partition(":")[0]) else PLUS.split(piece)
        head, colon, option = first.partition(":")
        if "=" in head:
            if not chains:
                raise UnknownMethodError(f"'{piece}' is an option without a method before it")
            chains[-1][-1][1].append(first)
        else:
            chains.append([(head.strip(), [option] if colon else [])])
        for other in others:
            head, colon, option = other.partition(":")
            chains[-1].append((head.strip(), [option] if colon else []))
    if not chains or not all(name for one in chains for name, _ in one):
        raise UnknownMethodError(f"no method in '{text}'; there are {', '.join(sorted(registry.METHODS))}")
    return [[MethodSpec(name, parse_options(options)) for name, options in one] for one in chains]


def chained(name: str) -> list[MethodSpec]:
    """The methods of a chain such as `divprune:keep=0.5+btp`; none where the name is that of one method."""
    if _is_folder(name) or not PLUS.search(name):
        return []
    (one,) = _parse(name)
    return one


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
    if name in registry.SHIPPED or _is_folder(name):
        return True
    return not chained(name) and name.count("/") == 1 and not name.startswith((".", "/"))


def _is_folder(name: str) -> bool:
    return os.path.isfile(os.path.join(name, CONFIG))  # False too for a name that no file can have


def build(name: str, options: Mapping[str, Any]) -> Pruner:
    """A pruner by its method's name, a saved one, or a chain of such, with these options.

    Raises
    ------
    UnknownMethodError
        When there is no such method, folder or option.
    BudgetError
        When an option's value makes no sense.
    """
    method, members = method_class(name), chained(name)
    if members:
        registry.check_options("a chain", method, options)
        return Chain(*(build(one.name, one.options) for one in members), **options)
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
    check_given_once(name, options, keep)
    if keep is None and not has_own_budget(name, options) and has_option(method_class(name), "keep"):
        keep = usual
    return build(name, options if keep is None else {"keep": keep, **options})


def check_given_once(name: str, options: Mapping[str, Any], keep: float | int | None) -> None:
    """Refuse a budget that is given apart and among the options, of a method or of one in a chain.

    Raises
    ------
    BudgetError
        When it is.
    """
    given = [one["keep"] for one in (options, *(member.options for member in chained(name))) if "keep" in one]
    if keep is not None and given:
        raise BudgetError(f"the budget is given twice: {keep!r} apart, and keep={given[0]!r} as an option")


def has_own_budget(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a method with these options has a budget without being given one."""
    return is_saved(name) or method_class(name).finds_budget or brings_budget(name, options)


def brings_budget(name: str, options: Mapping[str, Any]) -> bool:
    """Whether these options say how much is kept, as published stages do, or the `keep` of a chain's methods."""
    if members := chained(name):
        return any("keep" in one.options or has_own_budget(one.name, one.options) for one in members)
    return method_class(name).brings_budget(options)


def method_class(name: str) -> type[Pruner]:
    """The class of a method, of a saved pruner, or of a chain.

    Raises
    ------
    UnknownMethodError
        When there is no such method or folder.
    """
    if name in registry.METHODS:
        return registry.METHODS[name]
    if members := chained(name):
        for one in members:
            method_class(one.name)
        return Chain
    if is_saved(name):
        return type(registry.load(name))
    raise UnknownMethodError(
        f"no method '{name}', and no folder of a saved one; there are {', '.join(sorted(registry.METHODS))}"
    )


def has_option(method: type[Pruner], option: str) -> bool:
    """Whether a method has an option of this name."""
    return any(item.name == option for item in fields(method))
