"""What a cache must be, what it holds, and how its first layers are cut; on caches made by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, StaticCache

from foveate.engine.cache import check_cache, check_lengths, check_room, compact, lengths_held
from foveate.engine.cache_layers import PrunedLayer
from foveate.errors import UnsupportedCacheError, UnsupportedModelError

DEPTH = 3


def config(**more):
    return LlamaConfig(num_hidden_layers=DEPTH, num_attention_heads=2, hidden_size=8, **more)


def numbered(tokens: int, batch: int = 2) -> torch.Tensor:
    """(B, 2, tokens, 4), whose entries say sample and token."""
    return (torch.arange(tokens) + 100 * torch.arange(batch)[:, None])[:, None, :, None].float().expand(-1, 2, -1, 4)


def filled(tokens: int, layers: int = DEPTH) -> DynamicCache:
    cache = DynamicCache(config=config())
    for number in range(layers):
        cache.update(numbered(tokens).clone(), -numbered(tokens), number)
    return cache


def static(size: int, tokens: int) -> StaticCache:
    cache = StaticCache(config=config(), max_cache_len=size)
    for number in range(DEPTH if tokens else 0):
        cache.update(numbered(tokens).clone(), numbered(tokens), number)
    return cache


def test_tokens_held():
    assert lengths_held(filled(5, 2), DEPTH + 1) == [5, 5, 0, 0]
    assert lengths_held(static(9, 4), DEPTH) == [4, 4, 4]
    assert lengths_held(DynamicCache(), 2) == [0, 0]


@pytest.mark.parametrize(("size", "held", "coming", "fits"), [(9, 4, 5, True), (9, 4, 6, False), (9, 0, 9, True)])
def test_a_static_cache_must_have_room_for_the_dense_run(size, held, coming, fits):
    if fits:
        check_room(static(size, held), coming)
        return
    with pytest.raises(
        UnsupportedCacheError, match=f"made for {size} tokens, the conversation now has {held + coming}"
    ):
        check_room(static(size, held), coming)


def test_other_caches_have_room():
    check_room(filled(5), 10**9)


def test_layers_that_read_the_keys_of_others_need_none_of_their_own():
    check_cache(static(9, 0), DEPTH)
    check_cache(filled(3), DEPTH, {2})
    with pytest.raises(UnsupportedCacheError, match="whose layers share keys and values"):
        check_cache(static(9, 0), DEPTH, {2})
    wrong = filled(3)
    wrong.layers[2] = object()
    check_cache(wrong, DEPTH, {2})
    with pytest.raises(UnsupportedCacheError, match="layers of type object"):
        check_cache(wrong, DEPTH)


def test_a_kind_of_layer_that_is_still_to_come_is_looked_at():
    cache = DynamicCache()
    cache.layer_class_to_replicate = type("Other", (), {})
    with pytest.raises(UnsupportedCacheError, match="layers of type Other"):
        check_cache(cache, DEPTH)
    cache.layers = filled(2).layers
    check_cache(cache, DEPTH)
    with pytest.raises(UnsupportedCacheError, match="layers of type Other"):
        check_cache(cache, DEPTH + 1)


LENGTHS = [  # held before, coming, whether that is what three layers of 5 tokens hold
    ([0, 0, 0], [5, 5, 5], True),
    ([2, 2, 2], [3, 3, 3], True),
    ([0, 0, 0], [5, 4, 5], False),
    ([0, 0, 0], [5, 6, 5], False),
    ([0, None, 0], [5, 4, 5], True),
    ([0, 0, 0], [5, None, 5], True),
    ([0, 1, 0], [5, 5, 5], False),
]


@pytest.mark.parametrize(("before", "coming", "right"), LENGTHS)
def test_the_cache_holds_what_the_report_says(before, coming, right):
    if right:
        check_lengths(filled(5), before, coming)
        return
    with pytest.raises(UnsupportedModelError, match=f"layer 1 holds 5 tokens instead of {before[1] + coming[1]}"):
        check_lengths(filled(5), before, coming)


def test_a_window_may_hold_less_but_not_more():
    cache = DynamicCache(
        config=config(sliding_window=4, layer_types=["sliding_attention"] * DEPTH, use_sliding_window=True)
    )
    for number in range(DEPTH):
        cache.update(numbered(6).clone(), numbered(6), number)
    if not cache.layers[0].is_sliding:
        pytest.skip("this transformers makes no windows of such a config")
    held = cache.layers[0].keys.shape[-2]
    assert held < 6
    check_lengths(cache, [0] * DEPTH, [6] * DEPTH)
    with pytest.raises(UnsupportedModelError, match="layer 0"):
        check_lengths(cache, [0] * DEPTH, [held - 1] * DEPTH)


def test_in_training_layers_that_use_no_cache_are_no_fault():
    cache = filled(5)
    check_lengths(cache, [5, 5, 5], [3, 3, 3], training=True)
    with pytest.raises(UnsupportedModelError):
        check_lengths(cache, [5, 5, 5], [3, 3, 3])
    with pytest.raises(UnsupportedModelError):
        check_lengths(cache, [5, 5, 4], [3, 3, 3], training=True)
    check_lengths(None, [0], [5])


@pytest.mark.parametrize("told", [False, True])
def test_the_first_layers_keep_the_survivors(told):
    cache = filled(5)
    survivors = torch.tensor([[False, True, True, False, True], [True, False, False, False, True]])
    compact(cache, [0, 0], survivors, [3, 2] if told else None)
    for layer in cache.layers[:2]:
        assert isinstance(layer, PrunedLayer)
        assert layer.slots.tolist() == [[1, 2, 4], [-1, 0, 4]]
        assert layer.keys[0, 0, :, 0].tolist() == [1, 2, 4]
        assert layer.keys[1, 1, 1:, 2].tolist() == [100, 104]
        assert layer.values[0, 1, :, 3].tolist() == [-1, -2, -4]
        assert layer.padded
        assert layer.get_seq_length() == 5
    assert cache.layers[2].keys.shape[-2] == 5
    compact(cache, [0, 0], torch.tensor([[False, True, False, False, True]] * 2), None)
    assert cache.layers[0].slots.tolist() == [[1, 4], [-1, 4]]
    assert cache.layers[0].keys[1, 0, 1].tolist() == [104] * 4


def test_survivors_of_one_number_need_no_padding():
    cache = filled(4)
    compact(cache, [0], torch.tensor([[True, False, True, False], [False, True, True, False]]))
    assert not cache.layers[0].padded
    assert cache.layers[0].slots.tolist() == [[0, 2], [1, 2]]


def test_layers_that_hold_nothing_stay_as_they_are():
    cache = DynamicCache(config=config())
    compact(cache, [0, 0], torch.ones(2, 4, dtype=torch.bool))
    assert not any(isinstance(layer, PrunedLayer) for layer in cache.layers)
