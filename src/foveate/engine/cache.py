"""A KV cache layer that holds fewer tokens than it reports.

transformers derives masks, positions and slices of `input_ids` from the cache's length. A pruned layer answers with
the length the dense run would have, keeps the survivors only, and remembers which dense position each of them had.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from foveate.engine.cache_linear import STATE_LAYERS, holds_state
from foveate.engine.gather import align_right
from foveate.errors import UnsupportedCacheError


class PrunedLayer(DynamicLayer):
    """`DynamicLayer` whose `slots` (B, n) long tell the dense position of each key, -1 for padding."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    dense_length: int
    padded: bool
    coming: tuple[Tensor, int, bool] | None

    @classmethod
    def adopt(cls, layer: DynamicLayer, batch: int, device: torch.device) -> PrunedLayer:
        """A pruned layer with the content and the state of `layer`, which is used no more."""
        pruned = object.__new__(cls)  # constructors differ between releases
        pruned.__dict__ = layer.__dict__
        length = layer.get_seq_length()
        pruned.slots = torch.arange(length, device=device).expand(batch, -1)
        pruned.dense_length, pruned.padded, pruned.coming = length, False, None
        return pruned

    def expect(self, slots: Tensor, dense_length: int, padded: bool) -> None:
        """Announce all slots, (B, n), as they will be after the coming `update`."""
        self.coming = (slots, dense_length, padded)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.coming is None:
            raise UnsupportedCacheError(
                "this KV cache was pruned and cannot go on without its pruner: use it inside one `with pruner(model)`"
            )
        self.slots, self.dense_length, self.padded = self.coming
        self.coming = None
        return super().update(key_states, value_states, *args, **kwargs)

    def keep_slots(self, index: Tensor, slots: Tensor, padded: bool) -> None:
        """Keep the slots `index` (B, n) only; `slots` (B, n) says what they hold."""
        rows = index[:, None, :, None]
        self.keys = self.keys.gather(2, rows.expand(-1, self.keys.shape[1], -1, self.keys.shape[3]))
        self.values = self.values.gather(2, rows.expand(-1, self.values.shape[1], -1, self.values.shape[3]))
        self.slots, self.padded = slots, padded

    def get_seq_length(self) -> int:
        return self.dense_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.dense_length + query_length, 0

    def crop(self, max_length: int) -> None:
        # Older releases pass the final length, newer ones minus the number to remove; 0 removes nothing in the newer.
        remove = -max_length if max_length <= 0 else self.dense_length - max_length
        if remove <= 0:
            return
        length = self.dense_length - remove
        gone = (self.slots >= length).sum(-1)
        if int(gone.min()) != int(gone.max()):
            raise UnsupportedCacheError("crop() would cut into tokens that were pruned differently in each sample")
        stay = self.slots.shape[1] - int(gone[0])
        self.keys, self.values = self.keys[..., :stay, :], self.values[..., :stay, :]
        self.slots, self.dense_length = self.slots[:, :stay], length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.slots = self.slots.index_select(0, beam_idx.to(self.slots.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.slots = self.slots.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.slots = self.slots[indices]

    def reset(self) -> None:
        super().reset()
        self.slots, self.dense_length, self.padded, self.coming = self.slots[:, :0], 0, False, None


def check_cache(cache: Any, depth: int) -> None:
    """Raise unless every layer of the cache can hold a length of its own.

    Raises
    ------
    UnsupportedCacheError
        Naming the cache layer that cannot; nothing has been changed by then.
    """
    if not isinstance(cache, Cache):
        raise UnsupportedCacheError(f"pruning needs a transformers Cache, got {type(cache).__name__}")
    layers = list(cache.layers)
    kinds = {type(layer) for layer in layers}
    if len(layers) < depth and getattr(cache, "layer_class_to_replicate", None) is not None:
        kinds.add(cache.layer_class_to_replicate)
    wrong = sorted(kind.__name__ for kind in kinds - {DynamicLayer, PrunedLayer} - STATE_LAYERS)
    if wrong or getattr(cache, "offloading", False):
        what = ", ".join(wrong) or "an offloaded cache"
        raise UnsupportedCacheError(
            f"pruning does not support {what}: use the default dynamic cache (DynamicCache, full attention)"
        )


def cache_layer(cache: Cache, number: int) -> DynamicLayer:
    """Layer `number` of the cache, made if it is not there yet."""
    while len(cache.layers) <= number:
        cache.layers.append(cache.layer_class_to_replicate())
    return cache.layers[number]


def pruned_layer(cache: Cache, number: int, batch: int, device: torch.device) -> PrunedLayer:
    """Layer `number` of the cache as one that can hold fewer tokens than it reports."""
    layer = cache_layer(cache, number)
    if not isinstance(layer, PrunedLayer):
        layer = cache.layers[number] = PrunedLayer.adopt(layer, batch, device)
    return layer


def compact(cache: Cache, groups: list[int], survivors: Tensor) -> None:
    """Cut the first layers of the cache to the survivors.

    Parameters
    ----------
    groups
        For each layer to cut, a number that tells which of them hold the same positions.
    survivors
        (B, positions) bool, over the whole conversation and the method's own tokens behind it.
    """
    picked: dict[int, tuple[Tensor, Tensor, bool]] = {}
    for number, group in enumerate(groups):
        if holds_state(cache_layer(cache, number)):
            continue
        layer = pruned_layer(cache, number, survivors.shape[0], survivors.device)
        if group not in picked:
            stay = survivors.gather(1, layer.slots.clamp(min=0)) & (layer.slots >= 0)
            counts = stay.sum(-1).tolist()
            index = align_right(stay, max(counts))
            slots = layer.slots.gather(1, index).masked_fill(~stay.gather(1, index), -1)
            picked[group] = index, slots, min(counts) != max(counts)
        layer.keep_slots(*picked[group])
