"""A KV cache layer that holds fewer tokens than it reports.

transformers derives masks, positions and slices of `input_ids` from the cache's length. A pruned layer answers with
the length the dense run would have, keeps the survivors only, and remembers which dense position each of them had.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from foveate.errors import UnsupportedCacheError


class PrunedLayer(DynamicLayer):
    """`DynamicLayer` whose `slots` (B, n) long tell the dense position of each key, -1 for padding."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    dense_length: int
    padded: bool
    stay: int
    coming: tuple[Tensor, int, bool, int] | None

    @classmethod
    def adopt(cls, layer: DynamicLayer, batch: int, device: torch.device) -> Self:
        """A pruned layer with the content and the state of `layer`, which is used no more."""
        pruned = object.__new__(cls)  # constructors differ between releases
        pruned.__dict__ = layer.__dict__
        length = layer.get_seq_length()
        held = layer.keys.shape[-2] if length else 0
        pruned.slots = torch.arange(length - held, length, device=device).expand(batch, -1)
        pruned.dense_length, pruned.padded, pruned.coming = length, False, None
        return pruned

    @property
    def window(self) -> int | None:
        """How many of the last dense positions a token sees, itself among them; None: all."""
        return None

    def slots_to_keep(self, slots: Tensor, dense_length: int, coming: int) -> int:
        """How many of the last `slots` (B, n) a later token can need, once the `coming` newest are there."""
        return slots.shape[1]

    def joined(self, rows: Tensor, dense: int) -> Tensor:
        """Slots with the coming `rows` (B, n), left of `dense` tokens; after a reset the batch may be another."""
        return torch.cat([self.slots, rows], -1) if self.slots.shape[1] else rows

    def first_column(self, slots: Tensor, rows: Tensor) -> int:
        """Which of the `slots` that `joined` gave is the first of the coming rows."""
        return slots.shape[1] - rows.shape[1]

    def expect(self, slots: Tensor, dense_length: int, padded: bool, stay: int) -> None:
        """Announce all slots, (B, n), as they will be after the coming `update`, and how many of them must stay."""
        self.coming = (slots, dense_length, padded, stay)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.coming is None:
            raise UnsupportedCacheError(
                "this KV cache was pruned and cannot go on without its pruner: use it inside one `with pruner(model)`"
            )
        self.slots, self.dense_length, self.padded, self.stay = self.coming
        self.coming = None
        return super().update(key_states, value_states, *args, **kwargs)

    def keep_slots(self, index: Tensor, slots: Tensor, padded: bool) -> None:
        """Keep the slots `index` (B, n) only; `slots` (B, n) says what they hold."""
        rows = index.to(self.keys.device)[:, None, :, None]
        self.keys = self.keys.gather(2, rows.expand(-1, self.keys.shape[1], -1, self.keys.shape[3]))
        self.values = self.values.gather(2, rows.expand(-1, self.values.shape[1], -1, self.values.shape[3]))
        self.slots, self.padded = slots, padded

    def get_seq_length(self) -> int:
        return self.dense_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.dense_length + query_length, 0

    def to_remove(self, max_length: int) -> int:
        """How many tokens `crop(max_length)` takes off, in any release."""
        # Older releases pass the final length, newer ones minus the number to remove; 0 removes nothing in the newer.
        return max(-max_length if max_length <= 0 else self.dense_length - max_length, 0)

    def crop(self, max_length: int) -> None:
        remove = self.to_remove(max_length)
        if not remove:
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
        self.is_initialized = False  # older releases would keep the tensors, filled with zeros
        self.slots, self.dense_length, self.padded, self.coming = self.slots[:, :0], 0, False, None
