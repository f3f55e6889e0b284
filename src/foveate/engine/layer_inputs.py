"""A decoder layer's arguments for the tokens that are there."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.engine.arguments import NAMES, Arguments
from foveate.engine.cache import AnyPrunedLayer, PrunedStaticLayer
from foveate.engine.frame import Frame
from foveate.engine.gather import gather_positions, gather_rotary
from foveate.engine.mask import pick_mask
from foveate.errors import UnsupportedModelError

# labels: some models hand all they are given to every layer
KNOWN = {*(name for names in NAMES.values() for name in names), "use_cache", "labels"}


def pick_inputs(
    kwargs: dict[str, Any],
    names: Arguments,
    frame: Frame,
    hidden: Tensor,
    cached: AnyPrunedLayer | None,
    group: int,
    flat: bool,
) -> dict[str, Any]:
    """Rotary tables, position ids and mask picked for the tokens in `hidden`, and the cache layer told what comes.

    Parameters
    ----------
    kwargs
        The arguments as the model made them, for the dense prompt.
    names
        What the layer calls them.
    hidden
        (B, n, D), the tokens that are there.
    cached
        The layer's KV cache; None without one.
    group
        Layers of one group lie between the same stages: their caches hold the same positions.
    flat
        Whether the attention backend takes (B, K) padding masks.
    """
    places = frame.once("places", None, lambda: frame.places(hidden.shape[0], hidden.device))
    kwargs = dict(kwargs)
    if frame.index is not None:
        refuse_unknown(kwargs, frame.length)
        tables, ids = kwargs.get(names.rotary), kwargs.get(names.positions)
        if tables is not None:
            kwargs[names.rotary] = frame.once("rotary", tables, lambda: gather_rotary(tables, places))
        if ids is not None:
            picked = frame.once("ids", ids, lambda: gather_positions(frame.continued(ids), places, -1))
            kwargs[names.positions] = picked
    past = frame.past if cached is None else frame.once("past", None, lambda: cached.dense_length)
    padded = frame.alive is not None or (cached is not None and cached.padded)
    rows = frame.once("rows", None, lambda: frame.positions(places, past))
    slots, column, end = rows, 0, past + frame.length
    held = group, None if cached is None else cached.window  # layers of one group and one window hold the same tokens
    if cached is not None:
        slots = frame.once(("slots", held), None, lambda: cached.joined(rows, frame.length))
        coming = rows.shape[1]
        stay = frame.once(("stay", held), None, lambda: cached.slots_to_keep(slots, end, coming))
        column = frame.once(("column", held), None, lambda: cached.first_column(slots, rows))
        cached.expect(slots, end, padded, stay)
    first = 0 if cached is None else cached.get_mask_sizes(frame.length)[1]
    last = frame.prompt.query + past if frame.prompt is not None and frame.extra else None
    mask = kwargs.get(names.mask)
    kwargs[names.mask] = frame.once(
        ("mask", held), mask, lambda: pick_mask(mask, rows, slots, end, last, padded, flat, first, column)
    )
    return kwargs


def refuse_unknown(kwargs: dict[str, Any], length: int) -> None:
    """An argument with one entry a token that the engine does not know would no longer fit the tokens."""
    for name, value in kwargs.items():
        if name.startswith("cu_seq") and value is not None:
            raise UnsupportedModelError("pruning does not support packed sequences (cu_seq_lens)")
        if name not in KNOWN and isinstance(value, Tensor) and length in value.shape:
            raise UnsupportedModelError(
                f"the decoder layers take {name!r}, one entry a token, which foveate cannot cut"
            )


def static_step(
    number: int, names: Arguments, layer: nn.Module, args: tuple, kwargs: dict
) -> tuple[tuple, dict] | None:
    """One token more in a static cache. This is compiled with the model: it reads no state but the cache's tensors."""
    cache = kwargs.get(names.cache)
    hidden = args[0] if args else kwargs[names.hidden]
    if cache is None or hidden.shape[1] > 1 or len(cache.layers) <= number:
        return None
    cached = cache.layers[number]
    if not isinstance(cached, PrunedStaticLayer):
        return None
    return args, {**kwargs, names.mask: cached.place(kwargs.get(names.mask))}
