"""What `foveate check` is told on the command line, made into methods, a family and an attention backend."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from foveate.families import FAMILIES, Family
from foveate.measure.loading import LoadError
from foveate.measure.spec import build, has_option, is_saved, parse_methods
from foveate.testing import Uneven

KEEP = 0.3  # of methods that were not told


def make_pruners(text: str) -> list[Any]:
    """The methods of a comma-separated list, `uneven` among them.

    Raises
    ------
    UnknownMethodError
        No such method or option.
    BudgetError
        An option's value makes no sense.
    """
    pruners = []
    for spec in parse_methods(text):
        if spec.name == Uneven.name:
            pruners.append(Uneven(**spec.options))
            continue
        usual = {} if is_saved(spec.name) or not has_option(spec.name, "keep") else {"keep": KEEP}
        pruners.append(build(spec.name, usual | spec.options))
    if not pruners:
        raise LoadError("no method to check: --methods is empty")
    return pruners


def family_named(name: str) -> Family:
    """A listed family by its model type, the default, or the `NAME` of a file `FILE.py:NAME`.

    Raises
    ------
    LoadError
        No such family, file or name in it.
    """
    if name == "default":
        return Family("any", "any model", "")
    if name in FAMILIES:
        return FAMILIES[name]
    file, _, attribute = name.rpartition(":")
    if not file.endswith(".py") or not Path(file).is_file():
        raise LoadError(f"no family '{name}': use default, FILE.py:NAME, or one of {', '.join(FAMILIES)}")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise LoadError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)  # dataclasses look for the module of a class
    spec.loader.exec_module(module)
    found = getattr(module, attribute, None)
    if not isinstance(found, Family):
        raise LoadError(f"{file} has no family named '{attribute}' (an instance of foveate.families.Family)")
    return found


def use_attention(model: Any, name: str | None) -> None:
    """Switch the attention backend of the whole model; None leaves it as it is.

    Raises
    ------
    LoadError
        The model or this machine does not have it.
    """
    if name is None:
        return
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise LoadError(f"no attention backend '{name}' for this model: {str(error).splitlines()[0][:200]}") from error
