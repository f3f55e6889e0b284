"""Layers of a pruned KV cache: one class for each kind of layer that transformers has.

Pruned layers hold fewer tokens than they report. Layers before the first stage hold all and are only guarded: a
forward pass without the pruner is refused when it asks for the sizes of its masks, before any layer takes its keys.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from foveate.errors import UnsupportedCacheError
from foveate.tensors import align_right

ALONE = "this KV cache was pruned and cannot go on without its pruner: use it inside one `with pruner(model)`"
WINDOW_LEFT = "crop() needs tokens that have left the sliding window of this KV cache"
WHILE_PAUSED = (
    "this KV cache was pruned and cannot be used while its pruner is paused: go on with it outside of paused(), or "
    "pass the whole conversation with a new cache"
)


def alone() -> str:
    """The reason of a model without a pruner."""
    return ALONE


class Home:
    """Where a pruned cache may go on: the model that it was pruned for, while a pruner is at work on it.

    Copies of a cache share it. It is not pickled: a cache read from a file is refused by its first pruned layer.
    """

    def __init__(self) -> None:
        self.refusal: Callable[[], str | None] = alone
        """Why nothing can go on there now; None if it can."""

    def __deepcopy__(self, memo: dict) -> Home:
        return self

    def __reduce__(self) -> Any:
        return type(None), ()


_homes: weakref.WeakKeyDictionary[nn.Module, Home] = weakref.WeakKeyDictionary()


def home_of(decoder: nn.Module) -> Home:
    """The home of the caches that a model's decoder fills; the same one for its whole life."""
    return _homes.setdefault(decoder, Home())


def refuse_alone(layer: Any) -> None:
    """Raise where no pruner is at work on the model of a pruned cache, before anything has changed.

    Layers ask this when a forward pass wants the sizes of its masks, and when they are given keys: masks that the user
    made ask for no sizes.

    Raises
    ------
    UnsupportedCacheError
        Saying what to do.
    """
    home = getattr(layer, "home", None)
    if home is None or torch.compiler.is_compiling():  # compiled decoding comes after a prefill that was checked
        return
    reason = home.refusal()
    if reason is not None:
        raise UnsupportedCacheError(reason)


def refuse_crop(layer: Any, max_length: int) -> None:
    """Raise before the first layer of a pruned cache is cropped where another one cannot be.

    Raises
    ------
    UnsupportedCacheError
        When a sliding window would need tokens that have left it.
    """
    mates = getattr(layer, "mates", ())
    if not mates or vars(mates[0]) is not vars(layer):  # by content: a layer may have become another class
        return
    for mate in mates:
        window = getattr(mate, "sliding_window", None)
        beyond = window is not None and int(mate.get_seq_length()) >= window
        if beyond and not getattr(mate, "record_past", False) and removed_by_crop(mate, max_length):
            raise UnsupportedCacheError(WINDOW_LEFT)


def removed_by_crop(layer: Any, max_length: int) -> int:
    """How many tokens `crop(max_length)` takes off a layer, in any release; never more than it has."""
    # Older releases pass the final length, newer ones minus the number to remove; 0 removes nothing in the newer.
    length = int(layer.get_seq_length())
    return min(max(-max_length if max_length <= 0 else length - max_length, 0), length)


# One class cannot do this for all three: a layer becomes itself again only where nothing is mixed in.
class GuardedLayer(DynamicLayer):
    """A layer of a pruned cache that holds every token."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        refuse_alone(self)
        return super().get_mask_sizes(query_length)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        refuse_alone(self)
        return super().update(key_states, value_states, *args, **kwargs)

    def crop(self, max_length: int) -> None:
        refuse_crop(self, max_length)
        super().crop(max_length)

    def reset(self) -> None:
        super().reset()
        self.__class__ = DynamicLayer


class GuardedSlidingLayer(DynamicSlidingWindowLayer):
    """The same with a sliding window."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        refuse_alone(self)
        return super().get_mask_sizes(query_length)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        refuse_alone(self)
        return super().update(key_states, value_states, *args, **kwargs)

    def crop(self, max_length: int) -> None:
        refuse_crop(self, max_length)
        super().crop(max_length)

    def reset(self) -> None:
        super().reset()
        self.__class__ = DynamicSlidingWindowLayer


class GuardedStaticLayer(StaticLayer):
    """The same of a static cache."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        refuse_alone(self)
        return super().get_mask_sizes(query_length)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        refuse_alone(self)
        return super().update(key_states, value_states, *args, **kwargs)

    def reset(self) -> None:
        super().reset()
        self.__class__ = StaticLayer


GUARDED: dict[type, type] = {
    DynamicLayer: GuardedLayer,
    DynamicSlidingWindowLayer: GuardedSlidingLayer,
    StaticLayer: GuardedStaticLayer,
}


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
        refuse_alone(self)
        if self.coming is None:
            raise UnsupportedCacheError(ALONE)
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
        refuse_alone(self)
        return self.dense_length + query_length, 0

    def crop(self, max_length: int) -> None:
        """Take the last tokens off; samples of which more were pruned than of others keep fewer slots."""
        refuse_crop(self, max_length)
        remove = removed_by_crop(self, max_length)
        if not remove:
            return
        length = self.dense_length - remove
        gone = self.slots >= length
        last = self.slots.shape[1] - int(gone.sum(-1).max())
        if bool(gone[:, last:].all()):  # as in assisted decoding: the same columns of every sample
            self.keys, self.values = self.keys[..., :last, :], self.values[..., :last, :]
            self.slots = self.slots[:, :last]
        else:
            stay = ~gone & (self.slots >= 0)
            counts = stay.sum(-1)
            index = align_right(stay, int(counts.max()))
            slots = self.slots.gather(1, index).masked_fill(~stay.gather(1, index), -1)
            self.keep_slots(index, slots, bool((counts != counts[0]).any()))
        self.dense_length = length

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
        refuse_alone(self)
        first = max(self.dense_length - self.sliding_window + 1, 0)
        return self.dense_length - first + query_length, first

    @property
    def recording(self) -> bool:
        """Whether what leaves the window stays until the next `crop`, as assisted decoding asks for."""
        return getattr(self, "record_past", False)  # older releases cannot

    def activate_past_recording(self) -> None:
        self.record_past = True

    def crop(self, max_length: int) -> None:
        beyond = self.dense_length >= self.sliding_window and not self.recording
        if beyond and removed_by_crop(self, max_length):
            raise UnsupportedCacheError(WINDOW_LEFT)
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
        refuse_alone(self)
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
        """Announce all slots, (B, size), as they will be after the coming `update`."""
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
        refuse_alone(self)
        if not self.placed:
            raise UnsupportedCacheError(ALONE)
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
        remove = removed_by_crop(self, max_length)
        self.slots.masked_fill_(self.slots >= self.dense_length - remove, -1)
        held = self.slots >= 0
        used = held.flip(1).int().argmax(1)  # free slots behind the last that is held
        used = torch.where(held.any(1), held.shape[1] - used, 0)
        self.padded = self.padded or bool((used != used[0]).any())
        self.cumulative_length.fill_(used.max())
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
