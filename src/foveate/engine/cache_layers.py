"""Pruned layers of a KV cache: one class for each kind of layer that transformers has."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, StaticLayer

from foveate.errors import UnsupportedCacheError


class PrunedLayer(DynamicLayer):
    """`DynamicLayer` whose `slots` (B, n) long give the position of each key, -1 for padding."""

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


class PrunedSlidingLayer(PrunedLayer):
    """A pruned layer whose window counts dense positions: dropping tokens does not make it reach further back."""

    is_sliding = True
    sliding_window: int
    record_past: bool

    @property
    def window(self) -> int:
        return self.sliding_window

    def slots_to_keep(self, slots: Tensor, dense_length: int, coming: int) -> int:
        """How many of `slots` the next token can see in any sample; a bound of it where telling would cost a sync."""
        if coming == 1:
            return self.sliding_window - 1
        return int((slots > dense_length - self.sliding_window).sum(-1).max())

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if not self.recording:
            self._keep_last(self.stay)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        first = max(self.dense_length - self.sliding_window + 1, 0)
        return self.dense_length - first + query_length, first

    @property
    def recording(self) -> bool:
        """Whether what leaves the window stays until the next `crop`, as assisted decoding asks for."""
        return getattr(self, "record_past", False)  # older releases cannot

    def activate_past_recording(self) -> None:
        self.record_past = True

    def crop(self, max_length: int) -> None:
        remove = self.to_remove(max_length)
        if remove and self.dense_length >= self.sliding_window and not self.recording:
            raise UnsupportedCacheError("crop() needs tokens that have left the sliding window of this KV cache")
        super().crop(max_length)
        self._keep_last(self.sliding_window - 1)

    def _keep_last(self, number: int) -> None:
        if number < self.slots.shape[1]:
            first = self.slots.shape[1] - number
            self.keys, self.values = self.keys[..., first:, :], self.values[..., first:, :]
            self.slots = self.slots[:, first:]


STEP = 64  # buffers grow in steps, so that prompts that keep nearly as many tokens share a compiled graph


class PrunedStaticLayer(StaticLayer):
    """`StaticLayer` that holds fewer tokens than it reports; `slots` (B, size) give positions, -1 for free.

    `cumulative_length` counts the slots in use, `dense_cumulative` the tokens of the dense run.
    """

    slots: Tensor
    dense_cumulative: Tensor
    dense_max: int
    padded: bool
    coming: tuple[Tensor, int, bool] | None
    placed: bool
    is_initialized: bool

    @classmethod
    def adopt(cls, layer: StaticLayer, batch: int, device: torch.device) -> Self:
        """A pruned layer with the content and the state of `layer`, which is used no more."""
        pruned = object.__new__(cls)
        pruned.__dict__ = layer.__dict__
        pruned.dense_max = layer.max_cache_len
        length = int(layer.get_seq_length())
        pruned.dense_cumulative = torch.full_like(layer.cumulative_length, length, device=device)
        pruned.coming, pruned.placed, pruned.padded = None, False, False
        place = torch.arange(pruned.dense_max, device=device)
        pruned.slots = place.masked_fill(place >= length, -1).repeat(batch, 1)
        return pruned

    @property
    def window(self) -> None:
        return None

    @property
    def dense_length(self) -> int:
        return int(self.dense_cumulative)

    def get_seq_length(self) -> Any:
        return self.dense_cumulative

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.dense_max, 0

    def get_max_length(self) -> int:
        return self.dense_max

    get_max_cache_shape = get_max_length  # its name in older releases

    # -- a prompt

    def joined(self, rows: Tensor, dense: int) -> Tensor:
        """Slots with `rows` (B, n) after those in use, and as many free ones as the rest of the answer can need."""
        used = int(self.cumulative_length)
        size = self.slots.shape[1]
        if not used:
            size = self._size(rows.shape[1], dense)
        slots = rows.new_full((len(rows), size), -1)
        slots[:, :used] = self.slots[:, :used]
        slots[:, used : used + rows.shape[1]] = rows
        return slots

    def _size(self, held: int, dense: int) -> int:
        """Slots for `held` tokens and all that can follow the `dense` ones that they stand for."""
        size = held + self.dense_max - dense
        return min(-(-size // STEP) * STEP, max(size, self.dense_max))

    def first_column(self, slots: Tensor, rows: Tensor) -> int:
        """The slot of the first of the coming rows."""
        return int(self.cumulative_length)

    def slots_to_keep(self, slots: Tensor, dense_length: int, coming: int) -> int:
        return slots.shape[1]

    def expect(self, slots: Tensor, dense_length: int, padded: bool, stay: int) -> None:
        """Announce all slots, (B, size), as they will be after the coming `update`.

        Raises
        ------
        UnsupportedCacheError
            When the dense run would not fit: here there may be room, but the masks end where its cache does.
        """
        if dense_length > self.dense_max:
            raise UnsupportedCacheError(
                f"this static KV cache was made for {self.dense_max} tokens, the conversation now has {dense_length}"
            )
        self.coming, self.placed = (slots, dense_length, padded), True

    # -- an answer

    def place(self, mask: Tensor | None) -> Tensor:
        """Give the coming token its slot; the mask for the slots out of that of the dense run.

        Parameters
        ----------
        mask
            (B or 1, 1, 1, K) bool or additive, (B or 1, K) of a flash backend, or None.
        """
        self.slots.index_copy_(1, self.cumulative_length.view(1), self.dense_cumulative.expand(len(self.slots), 1))
        self.placed = True
        free = self.slots < 0
        if mask is None:
            return ~free[:, None, None, :]
        columns = self.slots.clamp(min=0)
        if mask.ndim == 2:
            return mask.expand(len(columns), -1).gather(1, columns).masked_fill(free, 0)
        picked = mask.expand(len(columns), -1, -1, -1)
        picked = picked.gather(3, columns[:, None, None, :].expand(-1, picked.shape[1], picked.shape[2], -1))
        hidden = 0 if picked.dtype == torch.bool else torch.finfo(picked.dtype).min
        return picked.masked_fill(free[:, None, None, :], hidden)

    # -- both

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.placed:
            raise UnsupportedCacheError(
                "this KV cache was pruned and cannot go on without its pruner: use it inside one `with pruner(model)`"
            )
        self.placed = False
        if self.coming is None:
            self.dense_cumulative.add_(1)
            return super().update(key_states, value_states, *args, **kwargs)
        slots, dense_length, self.padded = self.coming
        self.coming = None
        if self.slots.shape != slots.shape or not self.is_initialized:
            self.slots, self.max_cache_len, self.is_initialized = slots.clone(), slots.shape[1], False
            torch._dynamo.mark_static_address(self.slots)
            torch._dynamo.mark_static_address(self.dense_cumulative)
        else:
            self.slots.copy_(slots)
        self.dense_cumulative.fill_(dense_length)
        return super().update(key_states, value_states, *args, **kwargs)

    def keep_slots(self, index: Tensor, slots: Tensor, padded: bool) -> None:
        """Keep the slots `index` (B, n) only; `slots` (B, n) says what they hold."""
        held = index.shape[1]
        size = self._size(held, self.dense_length)
        rows = index[:, None, :, None]
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], size, old.shape[3])
            new[:, :, :held] = old.gather(2, rows.expand(-1, old.shape[1], -1, old.shape[3]))
            setattr(self, name, new)
            torch._dynamo.mark_static_address(new)
        self.slots = torch.nn.functional.pad(slots, (0, size - held), value=-1)
        torch._dynamo.mark_static_address(self.slots)
        torch._dynamo.mark_static_address(self.dense_cumulative)
        self.max_cache_len, self.padded = size, padded
        self.cumulative_length.fill_(held)

    def crop(self, max_length: int) -> None:
        """Take the last tokens off, in place; `max_length` is minus their number, or the length that is left."""
        length = self.dense_length
        remove = max(-max_length if max_length <= 0 else length - max_length, 0)
        gone = self.slots >= length - remove
        counts = gone.sum(-1)
        if int(counts.min()) != int(counts.max()):
            raise UnsupportedCacheError("crop() would cut into tokens that were pruned differently in each sample")
        self.slots.masked_fill_(gone, -1)
        self.cumulative_length.sub_(int(counts[0]))
        self.dense_cumulative.sub_(remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.slots = self.slots.index_select(0, beam_idx.to(self.slots.device))

    def reset(self) -> None:
        """Become again what it was before: the next prompt may keep another number of tokens, or all."""
        super().reset()
        self.keys = self.values = None
        self.max_cache_len, self.is_initialized = self.dense_max, False
        self.__class__ = StaticLayer
