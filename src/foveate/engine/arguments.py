"""The names under which a model's modules take what the engine must see, found once, on attaching.

transformers renames arguments between releases: the KV cache is `past_key_values` up to 5.23 and `cache` from 5.24 on.
A hook that asks for a name which is not there would take the argument for absent, and the answer would be wrong. So
the names are read from the signatures of the model's own modules, and a model whose signatures lack one is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import transformers
from torch import nn
from transformers.cache_utils import Cache

from foveate.errors import UnsupportedModelError
from foveate.families.base import Parts
from foveate.families.tested import newest_tested

# Every name that an admitted release of transformers has for an argument, the newest first.
NAMES: Mapping[str, tuple[str, ...]] = {
    "hidden states": ("hidden_states",),
    "attention mask": ("attention_mask",),
    "position ids": ("position_ids",),
    "rotary tables": ("position_embeddings",),
    "KV cache": ("cache", "past_key_values"),
    "input embeddings": ("inputs_embeds",),
}
CACHE = NAMES["KV cache"]


@dataclass(frozen=True)
class Arguments:
    """What the decoder layers of a model call the arguments that the engine changes.

    Attributes
    ----------
    hidden
        (B, n, D) hidden states, the first argument.
    mask
        Attention mask, in the form of the backend.
    positions
        (B or 1, n) position ids.
    rotary
        Rotary tables, a pair of (B or 1, n, D).
    cache
        The KV cache.
    layer
        Names of the positional arguments of each layer, in order.
    """

    hidden: str
    mask: str
    positions: str
    rotary: str
    cache: str
    layer: tuple[tuple[str, ...], ...]

    def by_name(self, number: int, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments of layer `number` by their names, however the decoder passed them."""
        return {**dict(zip(self.layer[number], args, strict=False)), **kwargs}


def find_arguments(parts: Parts) -> Arguments:
    """The argument names of a model's decoder layers.

    Raises
    ------
    UnsupportedModelError
        When a module lacks an argument that it must have; names it, the installed transformers and the newest that
        foveate was tested with.
    """
    base, decoder = _parameters(parts.base), _parameters(parts.decoder)
    for what in ("attention mask", "position ids", "KV cache"):
        _name(what, base, parts.base)
    for what in ("input embeddings", "attention mask", "position ids", "KV cache"):
        _name(what, decoder, parts.decoder)
    found: dict[str, set[str]] = {}
    order = []
    for layer, attention in zip(parts.layers, parts.attention, strict=True):
        own = _parameters(layer)
        needed = ["hidden states", "attention mask", "KV cache", *(["rotary tables"] if attention is not None else [])]
        for what in needed:
            found.setdefault(what, set()).add(_name(what, own, layer))
        if attention is not None:
            for what in ("hidden states", "attention mask", "KV cache"):
                _name(what, _parameters(attention), attention)
        order.append(own)
    mixed = next((names for names in found.values() if len(names) > 1), None)
    if mixed:
        raise UnsupportedModelError(
            f"the decoder layers call one argument by several names: {', '.join(sorted(mixed))}"
        )
    one = {what: next(iter(names)) for what, names in found.items()}
    return Arguments(
        hidden=one["hidden states"],
        mask=one["attention mask"],
        positions=NAMES["position ids"][0],  # not every layer takes them
        rotary=one.get("rotary tables", NAMES["rotary tables"][0]),
        cache=one["KV cache"],
        layer=tuple(order),
    )


def _parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of the arguments of a module's forward, in order, without *args and **kwargs."""
    kinds = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.KEYWORD_ONLY,
    )
    module = cast("nn.Module", module._modules.get("_orig_mod", module))  # torch.compile's wrapper takes anything
    found = inspect.signature(module.forward).parameters
    return tuple(name for name, parameter in found.items() if parameter.kind in kinds)


def _name(what: str, parameters: Sequence[str], module: nn.Module) -> str:
    """The name of an argument among a module's; raises `UnsupportedModelError` if none of the known ones is there."""
    for name in NAMES[what]:
        if name in parameters:
            return name
    raise UnsupportedModelError(
        f"{type(module).__name__} takes no argument for the {what} that foveate knows ({' or '.join(NAMES[what])}; it "
        f"takes {', '.join(parameters) or 'none by name'}): {versions()}"
    )


def versions() -> str:
    """The installed transformers and the newest one that foveate was tested with, for the end of a message."""
    return f"transformers {transformers.__version__} is installed, foveate was tested with up to {newest_tested()}"


def cache_name(module: nn.Module) -> str:
    """What a model calls its KV cache, also one in a wrapper that takes any argument (PEFT, DistributedDataParallel).

    Raises
    ------
    UnsupportedModelError
        If no module of it takes a KV cache by a name that foveate knows.
    """
    for part in module.modules():
        taken = _parameters(part)
        for name in CACHE:
            if name in taken:
                return name
    return _name("KV cache", _parameters(module), module)


def with_cache(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The KV cache as a keyword argument of `module`, by the name that it has there."""
    return {cache_name(module): cache}


def cache_of(values: Any) -> Any:
    """The KV cache among the keyword arguments or outputs of a model, whatever it is called; None without one."""
    if not isinstance(values, Mapping):
        return None
    present = values.keys()  # asked for an old name, an output of transformers 5.24 warns
    for name in CACHE:  # a loop: torch 2.7 cannot compile `next` with a default, and decode steps are compiled
        if name in present and values[name] is not None:
            return values[name]
    return None


def refuse_unknown_cache(kwargs: Mapping[str, Any]) -> None:
    """Raise `UnsupportedModelError` if a KV cache comes under a name that the engine does not ask for."""
    for name, value in kwargs.items():
        if name not in CACHE and any(isinstance(one, Cache) for one in _flat(value)):
            raise UnsupportedModelError(
                f"the decoder is given a KV cache as {name!r}, which foveate does not know: {versions()}"
            )


def _flat(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)
