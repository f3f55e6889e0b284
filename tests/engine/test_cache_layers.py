"""Layers of a pruned cache, one operation at a time: what they hold, what they report, what they refuse."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from foveate.engine.cache_layers import (
    STEP,
    PrunedLayer,
    PrunedSlidingLayer,
    PrunedStaticLayer,
    refuse_crop,
    removed_by_crop,
)
from foveate.engine.cache_rows import join_rows, take_rows
from foveate.errors import UnsupportedCacheError

CPU = torch.device("cpu")


def numbered(tokens, batch=2):
    """(B, 1, n, 2), whose entries say sample and token."""
    return (torch.tensor(tokens) + 100 * torch.arange(batch)[:, None])[:, None, :, None].float().repeat(1, 1, 1, 2)


def held(layer):
    """What the keys say they are, for each sample."""
    return [[int(one) % 100 for one in row] for row in layer.keys[:, 0, :, 0]]


def pruned(slots, dense, layer=None):
    """A pruned layer that holds tokens by number."""
    layer = PrunedLayer.adopt(DynamicLayer(), 2, CPU) if layer is None else layer
    slots = torch.tensor(slots)
    layer.expect(slots, dense, bool((slots < 0).any()), slots.shape[1])
    keys = slots[:, None, :, None].float().repeat(1, 1, 1, 2) + 100 * torch.arange(len(slots))[:, None, None, None]
    layer.update(keys, -keys)
    return layer


def test_adopted_as_it_is():
    layer = DynamicLayer()
    layer.update(numbered(range(4)), numbered(range(4)))
    own = PrunedLayer.adopt(layer, 2, CPU)
    assert own.slots.tolist() == [[0, 1, 2, 3]] * 2
    assert (own.get_seq_length(), own.padded, own.window) == (4, False, None)
    assert own.get_mask_sizes(3) == (7, 0)
    assert PrunedLayer.adopt(DynamicLayer(), 2, CPU).slots.shape == (2, 0)


def test_what_comes_must_be_announced():
    layer = pruned([[0, 2], [1, 3]], 5)
    assert (layer.get_seq_length(), layer.padded) == (5, False)
    rows = torch.tensor([[5], [6]])
    assert layer.joined(rows, 1).tolist() == [[0, 2, 5], [1, 3, 6]]
    assert layer.first_column(layer.joined(rows, 1), rows) == 2
    assert layer.slots_to_keep(layer.slots, 5, 1) == 2
    with pytest.raises(UnsupportedCacheError, match="cannot go on without its pruner"):
        layer.update(numbered([5]), numbered([5]))
    layer.reset()
    assert layer.joined(rows[:1], 1).tolist() == [[5]]
    assert layer.get_seq_length() == 0


def test_samples_are_reordered_repeated_and_picked_with_their_slots():
    layer = pruned([[0, 2], [1, 3]], 5)
    layer.reorder_cache(torch.tensor([1, 0]))
    assert (layer.slots.tolist(), held(layer)) == ([[1, 3], [0, 2]],) * 2
    layer.batch_repeat_interleave(2)
    assert layer.slots.tolist() == held(layer) == [[1, 3], [1, 3], [0, 2], [0, 2]]
    layer.batch_select_indices(torch.tensor([3, 0]))
    assert layer.slots.tolist() == held(layer) == [[0, 2], [1, 3]]


class TestCrop:
    def test_the_same_columns_of_every_sample(self):
        layer = pruned([[0, 2, 7, 8], [1, 3, 7, 8]], 9)
        layer.crop(-2)
        assert layer.slots.tolist() == held(layer) == [[0, 2], [1, 3]]
        assert layer.values.shape[2] == 2
        assert (layer.get_seq_length(), layer.padded) == (7, False)
        layer.crop(0)
        assert layer.get_seq_length() == 7

    def test_samples_that_lose_different_numbers(self):
        layer = pruned([[0, 2, 4, 8], [1, 6, 7, 8]], 9)
        layer.crop(-3)
        assert layer.slots.tolist() == [[0, 2, 4], [-1, -1, 1]]
        assert held(layer)[0] == [0, 2, 4]
        assert held(layer)[1][2] == 1
        assert (layer.get_seq_length(), layer.padded) == (6, True)
        layer.crop(-4)
        assert layer.slots.tolist() == [[0], [1]]

    def test_no_more_than_there_is(self):
        layer = pruned([[0, 2], [1, 3]], 5)
        layer.crop(-50)
        assert layer.get_seq_length() == 0
        assert layer.slots.shape == (2, 0)

    def test_a_static_layer_in_place(self):
        layer = static([[0, 2, 4, 8], [1, 6, 7, 8]], 9, size=12)
        layer.crop(-3)
        assert layer.slots[:, :4].tolist() == [[0, 2, 4, -1], [1, -1, -1, -1]]
        assert (int(layer.cumulative_length), layer.dense_length, layer.padded) == (3, 6, True)
        layer = static([[0, 2], [1, 8]], 9, size=12)
        layer.crop(-9)
        assert (int(layer.cumulative_length), layer.dense_length, layer.padded) == (0, 0, False)


@pytest.mark.parametrize(("to", "taken"), [(-2, 2), (0, 0), (-9, 9), (-12, 9), (4, 5), (9, 0), (12, 0), (1, 8)])
def test_how_much_a_crop_takes(to, taken):
    """Minus the number to take off, or, as in older releases, the length that is left."""
    assert removed_by_crop(SimpleNamespace(get_seq_length=lambda: 9), to) == taken


def mates(*kinds):
    """Layers of one cache of 9 tokens: their windows, and whether they record what leaves them."""
    layers = [SimpleNamespace(get_seq_length=lambda: 9, **kind) for kind in kinds]
    for layer in layers:
        layer.mates = layers
    return layers


WINDOWS = [
    ([{}, {"sliding_window": 10}], False),
    ([{}, {"sliding_window": 9}], True),
    ([{}, {}, {"sliding_window": 4}], True),
    ([{}, {"sliding_window": 4, "record_past": True}], False),
    ([{"sliding_window": None}], False),
]


@pytest.mark.parametrize(("kinds", "refused"), WINDOWS)
def test_no_layer_is_cropped_where_the_window_of_another_cannot_be(kinds, refused):
    layers = mates(*kinds)
    if refused:
        with pytest.raises(UnsupportedCacheError, match="have left the sliding window"):
            refuse_crop(layers[0], -1)
    else:
        refuse_crop(layers[0], -1)
    refuse_crop(layers[0], 9)  # takes nothing off
    refuse_crop(layers[0], 0)
    if len(layers) > 1:
        refuse_crop(layers[1], -1)  # the first is asked, once


class TestWindow:
    def sliding(self, slots, dense, window=4):
        return pruned(slots, dense, PrunedSlidingLayer.adopt(DynamicSlidingWindowLayer(sliding_window=window), 2, CPU))

    def test_it_counts_dense_positions(self):
        layer = self.sliding([[0, 5, 6], [1, 2, 6]], 7)
        assert (layer.window, layer.get_seq_length()) == (4, 7)
        assert layer.get_mask_sizes(2) == (3 + 2, 4)
        assert layer.slots_to_keep(layer.slots, 7, 3) == 2  # 5 and 6 of the first sample: those above 3
        assert layer.slots_to_keep(layer.slots, 6, 3) == 2
        assert layer.slots_to_keep(layer.slots, 5, 3) == 2
        assert layer.slots_to_keep(torch.tensor([[0, 4, 5], [3, 4, 6]]), 7, 3) == 2
        assert layer.slots_to_keep(layer.slots, 7, 1) == 3
        assert self.sliding([[0], [1]], 2).get_mask_sizes(2) == (2 + 2, 0)

    def test_what_no_later_token_sees_leaves(self):
        layer = PrunedSlidingLayer.adopt(DynamicSlidingWindowLayer(sliding_window=4), 2, CPU)
        layer.expect(torch.tensor([[0, 5, 6], [1, 2, 6]]), 7, False, 2)
        keys, _ = layer.update(numbered([0, 5, 6]), numbered([0, 5, 6]))
        assert keys.shape[2] == 3  # this forward pass sees them all
        assert layer.slots.tolist() == [[5, 6], [2, 6]]
        assert held(layer) == [[5, 6]] * 2
        assert layer.values.shape[2] == 2

    def test_while_the_past_is_recorded_nothing_leaves(self):
        layer = PrunedSlidingLayer.adopt(DynamicSlidingWindowLayer(sliding_window=4), 2, CPU)
        assert not layer.recording
        layer.activate_past_recording()
        layer.expect(torch.tensor([[0, 5, 6], [1, 2, 6]]), 7, False, 2)
        layer.update(numbered([0, 5, 6]), numbered([0, 5, 6]))
        assert layer.slots.shape[1] == 3
        layer.crop(-1)
        assert layer.slots.tolist() == [[0, 5], [1, 2]]

    def test_a_crop_beyond_the_window_is_refused(self):
        with pytest.raises(UnsupportedCacheError, match="have left the sliding window"):
            self.sliding([[1, 2, 3]] * 2, 4).crop(-1)
        layer = self.sliding([[0, 1, 2]] * 2, 3)
        layer.crop(-1)
        assert layer.slots.tolist() == [[0, 1]] * 2


def static(slots, dense, size):
    """A static layer of `size` slots for a dense run, pruned while it took its prompt."""
    layer = PrunedStaticLayer.adopt(static_layer(size), 2, CPU)
    slots = torch.tensor(slots)
    joined = layer.joined(slots, dense)
    layer.expect(joined, dense, False, slots.shape[1])
    keys = slots[:, None, :, None].float().repeat(1, 1, 1, 2)
    layer.update(keys, -keys)
    return layer


def static_layer(size):
    layer = StaticLayer(max_cache_len=size)
    if hasattr(layer, "lazy_initialization"):
        layer.lazy_initialization(numbered([0]), numbered([0]))
    return layer


class TestStatic:
    def test_it_has_room_for_the_rest_of_the_answer(self):
        layer = static([[0, 2, 4], [1, 3, 4]], 5, size=100)
        assert layer.slots.shape == (2, 100)  # 98 in steps of 64 would be 128, more than the dense run's
        assert layer.slots[:, :4].tolist() == [[0, 2, 4, -1], [1, 3, 4, -1]]
        assert (int(layer.cumulative_length), layer.dense_length, layer.get_max_length()) == (3, 5, 100)
        assert layer.get_mask_sizes(7) == (100, 0)
        assert static([[0, 2, 4]] * 2, 90, size=100).slots.shape[1] == STEP  # 3 and the 10 to come
        assert static([[0, 2, 4]] * 2, 39, size=100).slots.shape[1] == STEP  # 3 and 61
        assert static([[0, 2, 4]] * 2, 38, size=100).slots.shape[1] == 100

    def test_a_later_turn_comes_after_the_slots_in_use(self):
        layer = static([[0, 2, 4], [1, 3, 4]], 5, size=20)
        rows = torch.tensor([[5, 6], [5, 6]])
        joined = layer.joined(rows, 2)
        assert joined[:, :6].tolist() == [[0, 2, 4, 5, 6, -1], [1, 3, 4, 5, 6, -1]]
        assert joined.shape == (2, 20)
        assert layer.first_column(joined, rows) == 3
        assert layer.slots_to_keep(joined, 7, 2) == 20

    def test_a_token_takes_the_next_slot_and_sees_what_is_held(self):
        layer = static([[0, 2, 4], [1, 3, 4]], 5, size=9)
        mask = torch.arange(9)[None].expand(2, -1) < 6  # the dense run's: all six tokens
        assert layer.place(None).tolist() == [[[[True] * 4 + [False] * 5]]] * 2
        assert layer.slots[:, :5].tolist() == [[0, 2, 4, 5, -1], [1, 3, 4, 5, -1]]
        assert layer.place(mask.long()).tolist() == [[1] * 4 + [0] * 5] * 2
        assert layer.place(mask[:1, None, None]).tolist() == [[[[True] * 4 + [False] * 5]]] * 2
        padded = mask & (torch.arange(9) != 1)
        assert layer.place(padded[:, None, None]).tolist()[1][0][0][:4] == [False, True, True, True]
        low = torch.finfo(torch.float32).min
        additive = torch.zeros(2, 1, 1, 9).masked_fill(~padded[:, None, None], low)
        assert layer.place(additive)[:, 0, 0].tolist() == [[0.0] * 4 + [low] * 5, [low] + [0.0] * 3 + [low] * 5]
        layer.update(numbered([5]), numbered([5]))
        assert (layer.dense_length, int(layer.cumulative_length)) == (6, 4)
        with pytest.raises(UnsupportedCacheError, match="without its pruner"):
            layer.update(numbered([6]), numbered([6]))

    def test_slots_are_kept_and_the_buffers_made_anew(self):
        layer = static([[0, 2, 4], [1, 3, 4]], 5, size=70)
        layer.keep_slots(torch.tensor([[0, 2], [1, 2]]), torch.tensor([[0, 4], [3, 4]]), True)
        assert layer.keys.shape[2] == layer.values.shape[2] == layer.slots.shape[1] == layer.max_cache_len == 70
        assert layer.keys[:, 0, :3, 0].tolist() == [[0, 4, 0], [3, 4, 0]]
        assert layer.values[1, 0, :2, 1].tolist() == [-3, -4]
        assert layer.slots[:, :3].tolist() == [[0, 4, -1], [3, 4, -1]]
        assert (int(layer.cumulative_length), layer.padded) == (2, True)

    def test_after_a_reset_it_is_what_it_was(self):
        layer = static([[0, 2, 4]] * 2, 90, size=100)
        layer.reset()
        assert type(layer) is StaticLayer
        assert layer.max_cache_len == 100


def test_rows_that_stay_take_off_what_is_padding_in_all_of_them():
    cache = DynamicCache()
    cache.layers = [pruned([[-1, -1, 4, 8], [-1, 3, 7, 8], [1, 2, 7, 8]], 9)]
    take_rows(cache, torch.tensor([1, 0]), 3)
    layer = cache.layers[0]
    assert layer.slots.tolist() == [[0, 4, 5], [-1, 1, 5]]
    assert layer.keys.shape[2] == layer.values.shape[2] == 3
    assert held(layer)[0] == [3, 7, 8]
    assert (layer.get_seq_length(), layer.padded) == (6, True)
    take_rows(cache, torch.tensor([0]), 0)
    assert (layer.slots.tolist(), layer.padded) == ([[0, 4, 5]], False)


def test_a_shorter_batch_that_joins_gets_padding_before_it():
    first, second = DynamicCache(), DynamicCache()
    first.layers, second.layers = [pruned([[0, 2, 7], [1, 3, 7]], 8)], [pruned([[1, 4], [0, 4]], 5)]
    join_rows(first, second)
    layer = first.layers[0]
    assert layer.slots.tolist() == [[0, 2, 7], [1, 3, 7], [-1, 4, 7], [-1, 3, 7]]
    assert held(layer)[2][1:] == [1, 4]
    assert (layer.get_seq_length(), layer.padded) == (8, True)
