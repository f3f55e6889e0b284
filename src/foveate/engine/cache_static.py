"""The same for static caches: buffers of a fixed size, so that decoding can be compiled.

Buffers are made for the survivors and the rest of the answer. While decoding, everything that changes is a tensor
changed in place, and nothing is read back: one graph serves every step.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer

from foveate.errors import UnsupportedCacheError

STEP = 64  # buffers grow in steps, so that prompts that keep nearly as many tokens share a compiled graph


class PrunedStaticLayer(StaticLayer):
    """`StaticLayer` that holds fewer tokens than it reports; `slots` (B, size) tell whose they are, -1 for nobody's.

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
        """Slots with `rows` (B, n) behind those in use, and as many free ones as the rest of the answer can need."""
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
