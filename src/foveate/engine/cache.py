"""The KV cache of a pruned run: which caches can be one, and how their layers become layers that hold fewer tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from foveate.engine.arguments import versions
from foveate.engine.cache_layers import (
    GUARDED,
    GuardedLayer,
    GuardedSlidingLayer,
    GuardedStaticLayer,
    Home,
    PrunedLayer,
    PrunedSlidingLayer,
    PrunedStaticLayer,
)
from foveate.errors import UnsupportedCacheError, UnsupportedModelError
from foveate.tensors import align_right

AnyPrunedLayer = PrunedLayer | PrunedStaticLayer
KINDS: dict[type, type[AnyPrunedLayer]] = {
    DynamicLayer: PrunedLayer,
    DynamicSlidingWindowLayer: PrunedSlidingLayer,
    StaticLayer: PrunedStaticLayer,
    GuardedLayer: PrunedLayer,
    GuardedSlidingLayer: PrunedSlidingLayer,
    GuardedStaticLayer: PrunedStaticLayer,
}
QUANTISED: type = getattr(cache_utils, "BaseQuantizedLayer", cache_utils.QuantizedLayer)  # the former is newer


def check_cache(cache: Any, depth: int, readers: Collection[int] = ()) -> None:
    """Raise unless every layer of the cache can hold a length of its own.

    Parameters
    ----------
    depth
        Decoder layers.
    readers
        Those of them that read the keys and values of others; the cache has nothing for them.

    Raises
    ------
    UnsupportedCacheError
        Naming the cache layer that cannot; nothing has been changed by then.
    """
    if not isinstance(cache, Cache):
        raise UnsupportedCacheError(f"pruning needs a transformers Cache, got {type(cache).__name__}")
    if isinstance(cache, EncoderDecoderCache):
        raise UnsupportedCacheError("pruning does not support the KV cache of an encoder-decoder model")
    layers = [layer for number, layer in enumerate(cache.layers) if number not in readers]
    kinds = {type(layer) for layer in layers}
    if len(layers) < depth - len(readers) and getattr(cache, "layer_class_to_replicate", None) is not None:
        kinds.add(cache.layer_class_to_replicate)
    wrong = sorted({_describe(kind) for kind in kinds - {*KINDS, *KINDS.values(), *STATE_LAYERS}})
    if wrong or getattr(cache, "offloading", False):
        what = " and ".join(wrong) or "an offloaded KV cache"
        raise UnsupportedCacheError(f"pruning does not support {what}: use the default cache (DynamicCache)")
    if readers and any(issubclass(kind, StaticLayer) for kind in kinds):
        raise UnsupportedCacheError(
            "pruning does not support static caches of models whose layers share keys and values: use the default "
            "cache (DynamicCache)"
        )


def check_room(cache: Cache, coming: int) -> None:
    """Raise where a static cache has no room for the `coming` tokens that the dense run would put there.

    Pruned layers may have it: the masks end where the dense run's cache does.

    Raises
    ------
    UnsupportedCacheError
        Before any layer has taken them.
    """
    sizes = [
        getattr(layer, "dense_max", layer.max_cache_len) for layer in cache.layers if isinstance(layer, StaticLayer)
    ]
    if sizes and (total := int(cache.get_seq_length()) + coming) > min(sizes):
        raise UnsupportedCacheError(
            f"this static KV cache was made for {min(sizes)} tokens, the conversation now has {total}"
        )


def _describe(kind: type) -> str:
    """What a cache layer of this kind, which cannot hold a length of its own, is called."""
    if issubclass(kind, QUANTISED):
        return "a quantised KV cache"
    if issubclass(kind, StaticSlidingWindowLayer):
        return "static caches with sliding windows"
    return f"KV cache layers of type {kind.__name__}"


def cache_layer(cache: Cache, number: int) -> DynamicLayer:
    """Layer `number` of the cache, made if it is not there yet."""
    while len(cache.layers) <= number:
        cache.layers.append(cache.layer_class_to_replicate())
    return cache.layers[number]


def pruned_layer(cache: Cache, number: int, batch: int, device: torch.device) -> AnyPrunedLayer:
    """Layer `number` of the cache as one that can hold fewer tokens than it reports."""
    layer = cache_layer(cache, number)
    if not isinstance(layer, AnyPrunedLayer):
        layer = cache.layers[number] = KINDS[type(layer)].adopt(layer, batch, device)
    if layer.slots.device != device:
        layer.slots = layer.slots.to(device)
    return layer


def guard(cache: Cache, home: Home) -> None:
    """Let every layer of a pruned cache refuse a forward pass without the pruner, those before its first cut too."""
    with_keys = [layer for layer in cache.layers if not holds_state(layer)]
    for layer in with_keys:
        if type(layer) in GUARDED:
            layer.__class__ = GUARDED[type(layer)]
        layer.home, layer.mates = home, with_keys


def compact(cache: Cache, groups: list[int], survivors: Tensor, lengths: list[int] | None = None) -> None:
    """Cut the first layers of the cache to the survivors.

    Parameters
    ----------
    groups
        For each layer to cut, a number that tells which of them hold the same positions.
    survivors
        (B, positions) bool, over the whole conversation and the method's own tokens after it.
    lengths
        How many survivors each sample has in a layer that holds all positions; None: the device is asked.
    """
    picked: dict[tuple[int, int | None], tuple[Tensor, Tensor, bool]] = {}
    for number, group in enumerate(groups):
        found = cache_layer(cache, number)
        if holds_state(found) or _held(found) == 0:  # in training, checkpointed layers leave their cache empty
            continue
        layer = pruned_layer(cache, number, survivors.shape[0], survivors.device)
        held = group, layer.window  # a window's layers hold other positions than their neighbours
        if held not in picked:
            stay = survivors.gather(1, layer.slots.clamp(min=0)) & (layer.slots >= 0)
            counts = lengths if lengths is not None and layer.window is None else stay.sum(-1).tolist()
            index = align_right(stay, max(counts))
            slots = layer.slots.gather(1, index).masked_fill(~stay.gather(1, index), -1)
            picked[held] = index, slots, min(counts) != max(counts)
        layer.keep_slots(*picked[held])


def lengths_held(cache: Cache, depth: int) -> list[int | None]:
    """Tokens that each layer of the cache holds; None where telling would ask the device, or a state is held."""
    return [_held(cache.layers[number]) if number < len(cache.layers) else 0 for number in range(depth)]


def check_lengths(
    cache: Any, before: Sequence[int | None], coming: Sequence[int | None], training: bool = False
) -> None:
    """Raise unless every layer of the cache holds what the report says was left for it, after a pruned prefill.

    The proof, before an answer is given, that nothing the engine relies on has changed its name or its place.

    Parameters
    ----------
    cache
        As the model left it; None where it keeps none.
    before
        Tokens that each layer held before, see `lengths_held`.
    coming
        Tokens of the longest sample that each layer was given; None: not known, or a layer without a cache.
    training
        Whether gradients are wanted of a model in training mode: with gradient checkpointing, transformers then takes
        the cache away from the layers.

    Raises
    ------
    UnsupportedModelError
        Naming the first layer that holds another number.
    """
    if not isinstance(cache, Cache):
        return
    if training and lengths_held(cache, len(before)) == list(before):  # checkpointed layers use no cache
        return
    for number, (old, new) in enumerate(zip(before, coming, strict=True)):
        if old is None or new is None:
            continue
        layer = cache.layers[number]
        held = _held(layer)
        if held is None:
            continue
        window = getattr(layer, "sliding_window", None) if getattr(layer, "is_sliding", False) else None
        if held > old + new or (window is None and held != old + new):
            raise UnsupportedModelError(
                f"after a pruned prefill the KV cache of layer {number} holds {held} tokens instead of {old + new}: "
                f"this model keeps its cache in a way that foveate does not see; {versions()}"
            )


def _held(layer: Any) -> int | None:
    if holds_state(layer):
        return None
    if isinstance(layer, StaticLayer):
        used = layer.cumulative_length
        return int(used) if used.device.type == "cpu" else None
    keys = getattr(layer, "keys", None)
    return keys.shape[-2] if isinstance(keys, Tensor) and keys.numel() else 0


# older releases have no such layers; their hybrid models bring caches of their own, which `check_cache` refuses
STATE_LAYERS: frozenset[type] = frozenset(
    getattr(cache_utils, name) for name in ("LinearAttentionLayer",) if hasattr(cache_utils, name)
)


def holds_state(layer: Any) -> bool:
    """Whether a cache layer holds a state of fixed size, and no keys and values."""
    return type(layer) in STATE_LAYERS


def has_state(layer: Any) -> bool:
    """Whether such a layer has seen anything yet."""
    seen = layer.has_previous_state
    return any(seen.values()) if isinstance(seen, dict) else bool(seen)
