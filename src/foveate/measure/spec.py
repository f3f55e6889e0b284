"""How a method is written on a command line: `greedyprune:layer=0,threshold=0.7`, or the folder of a saved one."""

import ast
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from foveate.errors import UnknownMethodError
from foveate.pruners.saving import SHIPPED


@dataclass(frozen=True)
class MethodSpec:
    """A method's name and the options given to it, not yet made into a pruner.

    Parameters
    ----------
    name
        A name that `foveate.make` knows, or a folder or Hub id that `foveate.load` takes.
    options
        Options by name; `keep` is given apart, as the budget.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}:{','.join(f'{key}={_written(value)}' for key, value in self.options.items())}"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def brief(pruner: Any) -> str:
    """Return a pruner as its budget and what is not the default, for people; `repr` has it all."""
    options = {item.name: (getattr(pruner, item.name), item.default) for item in fields(pruner) if item.repr}
    told = [f"{name}={value!r}" for name, (value, default) in options.items() if name == "keep" or value != default]
    return f"{type(pruner).__name__}({', '.join(told)})"


def parse_value(text: str) -> Any:
    """Return the Python value that an option's text stands for; a text that is none stays a text."""
    lowered = text.strip().lower()
    if lowered in {"true", "false", "none"}:
        return {"true": True, "false": False, "none": None}[lowered]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Return `["layer=0", "fill=stop"]` as `{"layer": 0, "fill": "stop"}`."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UnknownMethodError(f"'{pair}' is not an option: write it as name=value")
        options[key.strip().replace("-", "_")] = parse_value(value)
    return options


def parse_methods(text: str) -> list[MethodSpec]:
    """Return the methods of a comma-separated list; `name=value` pieces belong to the method before them."""
    specs: list[tuple[str, list[str]]] = []
    for piece in _split_outside_brackets(text):
        head, colon, option = piece.partition(":")
        if "=" in head:
            if not specs:
                raise UnknownMethodError(f"'{piece}' is an option without a method before it")
            specs[-1][1].append(piece)
        else:
            specs.append((head.strip(), [option] if colon else []))
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
    """Say whether a name means a saved pruner: a folder that is there, or a Hub id such as `me/my-btp`."""
    if name in SHIPPED:
        return True
    return (Path(name) / "config.json").is_file() or (name.count("/") == 1 and not name.startswith((".", "/")))


def build(name: str, options: dict[str, Any]) -> Any:
    """Return a pruner by its method's name, or a saved one, with these options.

    Raises
    ------
    UnknownMethodError
        No such method, folder or option.
    BudgetError
        An option's value makes no sense.
    """
    from foveate import load, make

    method = method_class(name)
    if not is_saved(name):
        return make(name, **options)
    known = [item.name for item in fields(method)]
    if set(options) - set(known):
        unknown = ", ".join(sorted(set(options) - set(known)))
        raise UnknownMethodError(f"{name} has no option {unknown}; it has {', '.join(known)}")
    return replace(load(name), **options)


def method_class(name: str) -> type:
    """Return the class of a method that can be evaluated, the diagnostic `evidence` among them."""
    from foveate import load
    from foveate.measure.eval.oracle import Evidence
    from foveate.pruners import METHODS

    known = {**METHODS, Evidence.name: Evidence}
    if name in known:
        return known[name]
    if is_saved(name):
        return type(load(name))
    raise UnknownMethodError(
        f"no method '{name}', and no folder of a saved one; there are {', '.join(sorted(METHODS))}"
    )


def has_option(name: str, option: str) -> bool:
    """Say whether a method has an option of this name."""
    return any(item.name == option for item in fields(method_class(name)))
