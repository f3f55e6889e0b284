"""The same for layers that see a window of the last tokens, such as five of six in Gemma 3."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveate.engine.cache_dynamic import PrunedLayer
from foveate.errors import UnsupportedCacheError


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
