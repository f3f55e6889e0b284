"""foveate: visual-token pruning for vision-language models, measured beside the dense model.

Importing the package loads nothing heavy and changes nothing in torch or transformers: each public name is fetched the
first time it is used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"


def _methods() -> dict[str, str]:
    """Where the names come from that `pruners/methods.py` imports: read, as running it loads torch."""
    with open(os.path.join(os.path.dirname(__file__), "pruners", "methods.py"), encoding="utf-8") as file:
        lines = [line.split() for line in file if line.startswith("from ")]
    return {words[3]: words[1] for words in lines}


# name -> where it lives; None: the name is a sub-module itself
_PUBLIC: dict[str, str | None] = {
    **_methods(),
    "Chain": "foveate.pruners",
    "attach": "foveate.engine",
    "detach": "foveate.engine",
    "errors": None,
    "load": "foveate.pruners",
    "load_processor": "foveate.families",
    "make": "foveate.pruners",
    "select": None,
    "tiny": None,
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from foveate import errors as errors
    from foveate import select as select
    from foveate import tiny as tiny
    from foveate.engine.attach import attach as attach
    from foveate.engine.attach import detach as detach
    from foveate.families import load_processor as load_processor
    from foveate.pruners.chain import Chain as Chain
    from foveate.pruners.methods import *  # noqa: F403
    from foveate.pruners.registry import load as load
    from foveate.pruners.registry import make as make
else:  # a type checker that saw this function would take every name, misspelt ones too

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'foveate' has no attribute {name!r}")
        home = _PUBLIC[name]
        value = import_module(f"foveate.{name}") if home is None else getattr(import_module(home), name)
        globals()[name] = value  # next time without this function
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
