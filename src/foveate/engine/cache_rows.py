"""Rows of a KV cache: two batches that decode become one, and rows that are over leave.

Rows end together, so the shorter batch gets padding before it: its dense positions move right, in each layer by as
much. A pruned layer holds fewer tokens than dense positions, for each row its own: its slots move with the positions,
and both batches' slots are padded on the left to one number. What a row sees stays the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

from foveate.engine.cache import guard, pruned_layer
from foveate.engine.cache_layers import GuardedLayer, PrunedLayer
from foveate.errors import UnsupportedCacheError

KINDS = (DynamicLayer, GuardedLayer, PrunedLayer)


def check_rows(cache: Any) -> None:
    """Raise unless batches in such a cache can be joined.

    Raises
    ------
    UnsupportedCacheError
        Naming the kind of layer that cannot: one with a window, a state or a fixed size.
    """
    if not isinstance(cache, Cache):
        raise UnsupportedCacheError(f"running batches cannot be joined in a {type(cache).__name__}")
    for layer in cache.layers:
        if type(layer) not in KINDS:
            raise UnsupportedCacheError(
                f"running batches cannot be joined in KV cache layers of type {type(layer).__name__}"
            )


def join_rows(cache: Cache, other: Cache) -> None:
    """Append the rows of another cache, which is used no more.

    Both are of one model, attached to one pruner. Of the two lengths, `get_seq_length()`, the cache has the larger one
    afterwards: masks and token ids of the shorter batch need as many entries of padding before them.

    Parameters
    ----------
    cache, other
        Of batches B and C; the first becomes one of B + C rows.

    Raises
    ------
    UnsupportedCacheError
        As `check_rows`; nothing has been changed by then.
    """
    check_rows(cache)
    check_rows(other)
    length = max(int(one.get_seq_length()) for one in (cache, other))
    for number in range(len(cache.layers)):
        both = [cache.layers[number], other.layers[number]]
        if any(isinstance(layer, PrunedLayer) for layer in both):
            both = [
                pruned_layer(one, number, one.layers[number].keys.shape[0], one.layers[number].keys.device)
                for one in (cache, other)
            ]
        for layer in both:
            _move(layer, length - int(layer.get_seq_length()))
        most = max(layer.keys.shape[2] for layer in both)
        for layer in both:
            _pad(layer, most - layer.keys.shape[2])
        first, second = both
        first.keys, first.values = (
            torch.cat([getattr(first, name), getattr(second, name)]) for name in ("keys", "values")
        )
        if isinstance(first, PrunedLayer):
            first.slots = torch.cat([first.slots, second.slots])
            first.padded = bool((first.slots < 0).any())
    home = next((layer.home for one in (cache, other) for layer in one.layers if hasattr(layer, "home")), None)
    if home is not None:
        guard(cache, home)


def take_rows(cache: Cache, rows: Tensor, padding: int) -> None:
    """Keep these rows of a cache, without the positions that are padding in all of them.

    Parameters
    ----------
    cache
        As `check_rows` takes it.
    rows
        (B,) long, the rows to keep.
    padding
        How many of the first dense positions to take off; each of these rows has padding there.
    """
    for layer in cache.layers:
        layer.batch_select_indices(rows.to(layer.keys.device))
        _move(layer, -padding)
        if isinstance(layer, PrunedLayer):
            there = (layer.slots >= 0).any(0)
            _pad(layer, -int(there.int().argmax()))  # rows end together: what is empty in all comes first
            layer.padded = bool((layer.slots < 0).any())


def _move(layer: DynamicLayer, by: int) -> None:
    """Let every token stand `by` dense positions further on; what falls off at the beginning was padding."""
    if isinstance(layer, PrunedLayer):
        layer.slots = torch.where(layer.slots < max(-by, 0), -1, layer.slots + by)
        layer.dense_length += by
    else:
        _pad(layer, by)


def _pad(layer: DynamicLayer, number: int) -> None:
    """Put so many empty slots before those of every row; a negative number takes as many off."""
    if number:
        layer.keys, layer.values = pad(layer.keys, (0, 0, number, 0)), pad(layer.values, (0, 0, number, 0))
        if isinstance(layer, PrunedLayer):
            layer.slots = pad(layer.slots, (number, 0), value=-1)
