"""foveate: visual-token pruning for vision-language models, measured beside the dense model.

Importing the package loads nothing heavy and changes nothing in torch or transformers: each public name is fetched the
first time it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# name -> where it lives; None: the name is a sub-module itself
_PUBLIC: dict[str, str | None] = {
    "BTP": "foveate.pruners",
    "BTPStage": "foveate.pruners",
    "DivPrune": "foveate.pruners",
    "FastV": "foveate.pruners",
    "GlimpsePrune": "foveate.pruners",
    "GreedyPrune": "foveate.pruners",
    "PyramidDrop": "foveate.pruners",
    "Random": "foveate.pruners",
    "attach": "foveate.engine",
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
    from foveate.families import load_processor as load_processor
    from foveate.pruners import BTP as BTP
    from foveate.pruners import BTPStage as BTPStage
    from foveate.pruners import DivPrune as DivPrune
    from foveate.pruners import FastV as FastV
    from foveate.pruners import GlimpsePrune as GlimpsePrune
    from foveate.pruners import GreedyPrune as GreedyPrune
    from foveate.pruners import PyramidDrop as PyramidDrop
    from foveate.pruners import Random as Random
    from foveate.pruners import load as load
    from foveate.pruners import make as make
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
