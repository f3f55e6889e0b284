"""Pruners by the name of their method, or from a folder that holds a saved one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from foveate.errors import BudgetError, IncompatibleWeightsError, UnknownMethodError
from foveate.pruners import methods
from foveate.pruners.base import Pruner
from foveate.pruners.chain import Chain
from foveate.pruners.saving import CONFIG, find

METHODS: Mapping[str, type[Pruner]] = MappingProxyType(
    {found.name: found for found in vars(methods).values() if isinstance(found, type) and issubclass(found, Pruner)}
)
# trained pruners that come with the package
SHIPPED: Mapping[str, Path] = MappingProxyType(
    {name: folder for method in METHODS.values() for name, folder in method.shipped.items()}
)


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
    check_options(name, METHODS[name], options)
    return METHODS[name](**options)


def check_options(name: str, method: type[Pruner], options: Mapping[str, Any]) -> None:
    """Refuse options that a method does not have.

    Raises
    ------
    UnknownMethodError
        When there is one; the message lists what exists.
    """
    known = [field.name for field in dataclasses.fields(method)]
    if unknown := sorted(set(options) - set(known)):
        raise UnknownMethodError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")


def load(name_or_folder: str | Path) -> Pruner:
    """Load a pruner from a folder that `save_pretrained` wrote, or from the Hub.

    `glimpseprune-tiny` is GlimpsePrune with the predictor that comes with the embedded model. The folders of
    GlimpsePrune's authors (`config.json` beside `new_modules_gp.pt`) are taken, too. Files of weights are read as
    tensors, never as code.

    Raises
    ------
    ModelNotReachable
        When there is no such folder and the Hub has none or does not answer.
    BudgetError
        When the folder's config is not a pruner's.
    IncompatibleWeightsError
        When its weights are not what the config says.
    UnknownMethodError
        When it names a method or option that this version does not have.
    """
    name = str(SHIPPED.get(str(name_or_folder), name_or_folder))
    path = find(name, CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        for method in METHODS.values():
            if method.recognises(config):
                return method.from_authors(config, name)
        called, options = config["method"], dict(config["options"])
        members = [str(folder) for folder in config["methods"]] if called == Chain.name else []
    except (BudgetError, IncompatibleWeightsError):
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BudgetError(f"{path} is not a pruner's config: {error!r}") from error
    if called == Chain.name:
        return Chain(methods=[load(f"{name}/{folder}") for folder in members], **options)
    if called in METHODS:
        options |= METHODS[called].load_weights(config, name)
    return make(called, **options)
