"""Sliding windows count dense distance: a pruned run sees what the dense run with a mask sees."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from foveate import Random
from foveate.engine import attach
from foveate.engine.arguments import cache_of, with_cache
from foveate.engine.cache_layers import PrunedSlidingLayer
from foveate.errors import UnsupportedCacheError
from foveate.testing import hidden_from, reference_logits
from tests.engine.window_models import BUILDERS, FAMILY, WINDOW, build, window_inputs
from tests.laws.methods import METHODS
from tests.models.build import build as build_llava
from tests.models.build import generate, inputs, visual
from tests.models.sizes import LAYERS

RECORDS_PAST = hasattr(DynamicSlidingWindowLayer, "activate_past_recording")
METHODS_HERE = [
    "random",
    "fastv late",
    "btp logits compacted",
    "glimpseprune",
    "ladder",
    "ladder from 0 compacted",
    "merging",
]
CASES = [
    (name, attention, layout, method)
    for number, name in enumerate(BUILDERS)
    for attention, layouts in (("sdpa", ["one image", "ragged", "ragged with text only"]), ("eager", ["ragged"]))
    for layout in layouts
    for method in METHODS_HERE[number % 2 :: 2 if layout == "one image" else 1]
]
STEPS = 14  # more than the window


def check(name, attention, layout, method, steps=STEPS, **options):
    """The laws for one case; the pruned run's answer."""
    model, batch = build(name, attention), window_inputs(name, layout)
    with attach(model, method, family=FAMILY[name]) as pruned:
        out = generate(model, batch, steps, **options)
    gone = hidden_from(pruned.report, visual(batch))
    assert gone.min() < LAYERS, "nothing was pruned"
    length = batch["input_ids"].shape[1]
    steps = len(out.logits)
    for step in (0, 1, steps // 2, steps - 1):
        sequences = out.sequences[:, : length + step]
        expected = reference_logits(model, batch, sequences, gone, method.compact_cache, stages=pruned.report.stages)[
            :, -1
        ]
        torch.testing.assert_close(out.logits[step], expected, atol=1e-4, rtol=0)
    return out


@pytest.mark.parametrize(("name", "attention", "layout", "method"), CASES)
def test_pruned_equals_masked_reference(name, attention, layout, method):
    check(name, attention, layout, METHODS[method])


@pytest.mark.parametrize("layout", ["one image", "ragged"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", BUILDERS)
def test_keep_all_is_bit_identical(name, attention, layout):
    model, batch = build(name, attention), window_inputs(name, layout)
    dense = generate(model, batch, STEPS)
    for method in ("ladder", "glimpseprune"):
        everything = dataclasses.replace(METHODS[method], keep=1.0)
        with attach(model, everything, family=FAMILY[name], _always_gather=True):
            pruned = generate(model, batch, STEPS)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(pruned.logits, dense.logits, strict=True))


@pytest.mark.parametrize("name", BUILDERS)
def test_what_left_the_window_leaves_the_cache(name):
    model, batch = build(name), window_inputs(name, "one image")
    windows = [getattr(layer, "is_sliding", False) for layer in cache_of(generate(model, batch, 1)).layers]
    assert any(windows)
    with attach(model, Random(keep=4, layer=0), family=FAMILY[name]) as pruned:
        out = generate(model, batch, 1)
        longer = generate(model, batch, STEPS)
    kept, length = pruned.report.prefills[0].stages[0].kept[0], batch["input_ids"].shape[1]
    stay = ~visual(batch)[0]
    stay[kept] = True
    inside = int(stay[length - WINDOW + 1 :].sum())
    for layer, after, slides in zip(cache_of(out).layers, cache_of(longer).layers, windows, strict=True):
        assert isinstance(layer, PrunedSlidingLayer) == slides
        assert layer.keys.shape[-2] == layer.slots.shape[1] == (inside if slides else int(stay.sum()))
        assert layer.get_seq_length() == length
        assert after.keys.shape[-2] == (WINDOW - 1 if slides else int(stay.sum()) + STEPS - 1)


@pytest.mark.skipif(not RECORDS_PAST, reason="without pruning, too, this release's beams depend on the cache")
@pytest.mark.parametrize("name", ["gemma3", "mistral"])
@pytest.mark.parametrize("layout", ["one image", "ragged"])
def test_beams(name, layout):
    """Random ignores the question, so a run without a cache prunes the same at every step."""
    model, batch = build(name), window_inputs(name, layout)
    if "token_type_ids" in batch:
        del batch["token_type_ids"]  # without a cache the model would make each answer token's images anew
    with attach(model, Random(keep=0.4, layer=2), family=FAMILY[name]):
        cached = generate(model, batch, 6, num_beams=3)
        recomputed = generate(model, batch, 6, num_beams=3, use_cache=False)
    assert torch.equal(cached.sequences, recomputed.sequences)


@pytest.mark.skipif(not RECORDS_PAST, reason="this release cannot take tokens back either")
@pytest.mark.parametrize("name", ["gemma3", "qwen2"])
def test_prompt_lookup_takes_back_what_it_guessed(name):
    """Guesses that are wrong are cut off the cache again, also after the window has moved on."""
    model, batch = build(name), window_inputs(name, "one image")
    with attach(model, Random(keep=0.4, layer=1), family=FAMILY[name]):
        greedy = generate(model, batch, STEPS)
        looked_up = generate(model, batch, STEPS, prompt_lookup_num_tokens=3)
    assert torch.equal(greedy.sequences, looked_up.sequences)


def test_crop_without_a_record_is_refused():
    model, batch = build("mistral"), window_inputs("mistral", "one image")
    with attach(model, Random(keep=4, layer=0), family=FAMILY["mistral"]):
        cache = cache_of(generate(model, batch, 2))
    layer = cache.layers[3]
    before = layer.keys.shape
    with pytest.raises(UnsupportedCacheError, match="left the sliding window"):
        layer.crop(-1)
    assert layer.keys.shape == before


@pytest.mark.parametrize(("length", "refused"), [(WINDOW - 2, False), (WINDOW - 1, False), (WINDOW, True)])
def test_crop_is_refused_from_the_first_token_on_that_left(length, refused):
    layer = DynamicSlidingWindowLayer(sliding_window=WINDOW)
    layer.update(torch.randn(1, 2, length, 4), torch.randn(1, 2, length, 4))
    pruned = PrunedSlidingLayer.adopt(layer, 1, torch.device("cpu"))
    if refused:
        with pytest.raises(UnsupportedCacheError, match="left the sliding window"):
            pruned.crop(-2)
    else:
        pruned.crop(-2)
    assert pruned.get_seq_length() == length - (0 if refused else 2)


def test_batch_operations_and_reset():
    model, batch = build("mistral"), window_inputs("mistral", "ragged")
    with attach(model, Random(keep=0.3, layer=0), family=FAMILY["mistral"]) as pruned:
        first = generate(model, batch, 3)
        layer = cache_of(first).layers[4]
        slots, keys = layer.slots, layer.keys
        order = torch.tensor([2, 0, 1])
        layer.reorder_cache(order)
        assert torch.equal(layer.slots, slots[order])
        layer.batch_repeat_interleave(2)
        layer.batch_select_indices(torch.tensor([0, 2]))
        assert torch.equal(layer.slots, slots[[2, 0]])
        assert torch.equal(layer.keys, keys[[2, 0]])
        cache_of(first).reset()
        assert [one.get_seq_length() for one in cache_of(first).layers] == [0] * LAYERS
        again = generate(model, batch, 3, **with_cache(model, cache_of(first)))
    assert len(pruned.report.prefills) == 2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first.logits, again.logits, strict=True))


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_second_turn(name):
    model, batch = build(name), window_inputs(name, "one image")
    batch.pop("token_type_ids", None)
    with attach(model, Random(keep=0.3, layer=1), family=FAMILY[name]):
        first = generate(model, batch, 3)
        more = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], 1)
        mask = torch.ones_like(more)
        second = generate(model, {"input_ids": more, "attention_mask": mask}, 3, **with_cache(model, cache_of(first)))
        whole = generate(model, {**batch, "input_ids": more, "attention_mask": mask}, 3)
    for ours, theirs in zip(second.logits, whole.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["one image", "ragged"])
def test_window_of_the_cache_alone(layout):
    """A model of full attention with a cache that forgets; what the dense run forgets, the pruned one does, too."""
    model, batch = build_llava("llava"), inputs("llava", layout)

    def cache():
        made = DynamicCache()
        made.layers = [DynamicSlidingWindowLayer(sliding_window=8) for _ in range(LAYERS)]
        return made

    dense = generate(model, batch, 9, **with_cache(model, cache()))
    with attach(model, Random(keep=1.0, layer=0), _always_gather=True):
        same = generate(model, batch, 9, **with_cache(model, cache()))
    for ours, theirs in zip(same.logits, dense.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    with attach(model, Random(keep=2, layer=0)) as handle:
        pruned = generate(model, batch, 9, **with_cache(model, cache()))
    gone, length = hidden_from(handle.report, visual(batch)), batch["input_ids"].shape[1]

    def window(module, args, kwargs):
        place = torch.arange(args[0].shape[1])
        far = (place[:, None] >= length) & (place <= place[:, None] - 8)
        return args, {**kwargs, "attention_mask": ((place <= place[:, None]) & ~far).expand(len(gone), 1, -1, -1)}

    hooks = [layer.register_forward_pre_hook(window, with_kwargs=True) for layer in model.get_decoder().layers]
    try:
        for step, logits in enumerate(pruned.logits):
            expected = reference_logits(model, batch, pruned.sequences[:, : length + step], gone)[:, -1]
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    finally:
        for hook in hooks:
            hook.remove()
