"""Static caches: smaller buffers, the dynamic run's answers, and decode steps that are compiled once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import CompileConfig, StaticCache
from transformers.cache_utils import StaticLayer

from foveate import FastV, Random
from foveate.engine import attach
from foveate.engine.arguments import cache_of, with_cache
from foveate.engine.cache_layers import STEP, PrunedStaticLayer
from foveate.errors import UnsupportedCacheError
from tests.laws.methods import METHODS
from tests.models.build import build, build_anew, generate, inputs, visual

NAMES = ["random", "fastv late", "btp logits compacted", "glimpseprune", "ladder", "ladder from 0 compacted"]
STEPS = 5
MANY = [[4, *[None] * 6, 5]]  # more visual tokens than a buffer's step


def same(ours, theirs, atol=1e-5):
    assert torch.equal(ours.sequences, theirs.sequences)
    for one, other in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


CASES = [
    (family, attention, layout, method)
    for number, (family, attention) in enumerate(
        [("llava", "sdpa"), ("llava", "eager"), ("qwen2_5_vl", "sdpa"), ("qwen3_vl", "eager")]
    )
    for layout in ("one image", "ragged", "ragged with text only")
    for method in (NAMES if layout == "ragged" else NAMES[number % 2 :: 2])
]


@pytest.mark.parametrize(("family", "attention", "layout", "method"), CASES)
def test_static_equals_dynamic(family, attention, layout, method):
    model, batch = build(family, attention), inputs(family, layout)
    with METHODS[method](model) as pruned:
        dynamic = generate(model, batch, STEPS)
        static = generate(model, batch, STEPS, cache_implementation="static", disable_compile=True)
    assert pruned.report.prefills[0].stages
    assert any(isinstance(layer, PrunedStaticLayer) for layer in cache_of(static).layers)
    same(static, dynamic)
    for one, other in zip(cache_of(static).layers, cache_of(dynamic).layers, strict=True):
        if isinstance(one, PrunedStaticLayer):
            assert torch.equal(one.slots[:, : other.slots.shape[1]], other.slots)
            assert (one.slots[:, other.slots.shape[1] :] == -1).all()


@pytest.mark.parametrize("layout", ["one image", "ragged"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keep_all_is_bit_identical(attention, layout):
    model, batch = build("llava", attention), inputs("llava", layout)
    options = dict(cache_implementation="static", disable_compile=True)
    dense = generate(model, batch, STEPS, **options)
    for method in ("ladder", "glimpseprune"):
        everything = dataclasses.replace(METHODS[method], keep=1.0)
        for always in (False, True):
            with attach(model, everything, _always_gather=always):
                pruned = generate(model, batch, STEPS, **options)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(pruned.logits, dense.logits, strict=True))


@pytest.mark.parametrize("method", ["random", "ladder from 0 compacted", "glimpseprune"])
def test_buffers_are_smaller(method):
    model, batch = build("llava"), inputs("llava", MANY)
    with METHODS[method](model) as pruned:
        out = generate(model, batch, STEPS, cache_implementation="static", disable_compile=True)
    most = batch["input_ids"].shape[1] + STEPS
    text = most - int(visual(batch).sum())
    for layer, left in zip(cache_of(out).layers, pruned.report.tokens_per_layer, strict=True):
        needed = text + (pruned.report.tokens_per_layer[-1] if "random" not in method else left)
        assert needed <= layer.keys.shape[2] + 1 <= needed + STEP
        assert layer.keys.shape[2] < most - 1
        assert int(layer.get_seq_length()) == most - 1


@pytest.mark.parametrize(
    ("family", "layout", "method", "backend"),
    [
        ("llava", "one image", "random mid", "aot_eager"),
        ("llava", "ragged", "ladder from 0 compacted", "eager"),
        ("qwen3_vl", "ragged", "random mid", "eager"),
    ],
)
def test_decoding_is_compiled_once(family, layout, method, backend):
    """One graph without breaks serves every step, and the next prompt of the same size."""
    model = build_anew(family, "sdpa")
    batch, other = inputs(family, layout), inputs(family, layout)
    other["input_ids"] = torch.where(visual(batch), other["input_ids"], (other["input_ids"] + 1) % 80 + 1)
    compile_config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    compile_config._compile_all_devices = True
    torch._dynamo.reset()
    counter = torch._dynamo.utils.counters
    with METHODS[method](model):
        expected = [generate(model, one, STEPS) for one in (batch, other)]
        counter.clear()
        first = generate(model, batch, STEPS, cache_implementation="static", compile_config=compile_config)
        assert counter["stats"]["unique_graphs"] == 1
        second = generate(model, other, STEPS, cache_implementation="static", compile_config=compile_config)
        graphs = counter["stats"]["unique_graphs"]
    if graphs != 1:  # torch 2.7 and 2.8 compile anew for each cache
        counter.clear()
        for one in (batch, other):
            generate(model, one, STEPS, cache_implementation="static", compile_config=compile_config)
        assert graphs == counter["stats"]["unique_graphs"], "the dense model has fewer graphs"
    same(first, expected[0])
    same(second, expected[1])


def test_compiled_dense_then_pruned_then_dense():
    """What was compiled without a pruner is not used with it, nor the other way round."""
    model, batch = build_anew("llava", "sdpa"), inputs("llava", "one image")
    compile_config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compile_config._compile_all_devices = True
    static = dict(cache_implementation="static", compile_config=compile_config)
    torch._dynamo.reset()
    dense = generate(model, batch, STEPS)
    same(generate(model, batch, STEPS, **static), dense)
    for pruner in (Random(keep=0.3, layer=0), FastV(keep=0.5)):
        with pruner(model):
            same(generate(model, batch, STEPS, **static), generate(model, batch, STEPS))
        same(generate(model, batch, STEPS, **static), dense)


def test_beams():
    model, batch = build("llava"), inputs("llava", "ragged")
    with Random(keep=0.4, layer=2)(model):
        static = generate(model, batch, 4, num_beams=3, cache_implementation="static", disable_compile=True)
        dynamic = generate(model, batch, 4, num_beams=3)
    assert torch.equal(static.sequences, dynamic.sequences)


def test_a_cache_that_was_reset_is_a_static_cache():
    model, batch = build("llava"), inputs("llava", "one image")
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    dense = generate(model, batch, 3)
    for pruner in (Random(keep=0.3, layer=0), Random(keep=0.6, layer=2)):
        with pruner(model):
            expected = generate(model, batch, 3)
            same(generate(model, batch, 3, **with_cache(model, cache), disable_compile=True), expected)
        cache.reset()
        assert {type(layer) for layer in cache.layers} == {StaticLayer}
    same(generate(model, batch, 3, **with_cache(model, cache), disable_compile=True), dense)


@pytest.mark.parametrize("layer", [0, 2])
def test_second_turn(layer):
    model, batch = build("llava"), inputs("llava", "one image")
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=96)
    with Random(keep=0.3, layer=layer)(model):
        first = generate(model, batch, 3, **with_cache(model, cache), disable_compile=True)
        more = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], 1)
        mask = torch.ones_like(more)
        again = {"input_ids": more, "attention_mask": mask}
        second = generate(model, again, 3, **with_cache(model, cache), disable_compile=True)
        whole = generate(model, {**batch, **again}, 3)
    same(second, whole, 1e-4)


@pytest.mark.skipif(not hasattr(StaticLayer, "crop"), reason="this transformers crops no static cache")
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("how", [{"prompt_lookup_num_tokens": 3}, {"assistant": True}])
def test_tokens_that_were_proposed_in_vain_are_taken_off(layer, how):
    model, batch = build("llava"), inputs("llava", "one image")
    options = {"assistant_model": build("llava_next")} if "assistant" in how else how
    if "assistant" in how:
        options["assistant_model"].generation_config.num_assistant_tokens = 3
    with Random(keep=0.3, layer=layer)(model):
        expected = generate(model, batch, 8)
        found = generate(model, batch, 8, cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(found.sequences, expected.sequences)


def test_cropping_undoes_a_step():
    model, batch = build("llava"), inputs("llava", "ragged")
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=96)
    words = torch.tensor([[7], [8], [9]])
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    with Random(keep=0.3)(model), torch.no_grad():
        model(**batch, **with_cache(model, cache))
        first = model(input_ids=words, attention_mask=mask, **with_cache(model, cache)).logits
        for layer in cache.layers:
            layer.crop(-1 if hasattr(StaticLayer, "crop") else batch["input_ids"].shape[1])
        model(input_ids=words + 5, attention_mask=mask, **with_cache(model, cache))
        for layer in cache.layers:
            layer.crop(-1 if hasattr(StaticLayer, "crop") else batch["input_ids"].shape[1])
        again = model(input_ids=words, attention_mask=mask, **with_cache(model, cache)).logits
    torch.testing.assert_close(again, first, atol=0, rtol=0)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_conversation_that_the_dense_cache_has_no_room_for_is_refused(layer):
    """The buffers of a pruned layer may have room, but the dense masks end where the dense cache does."""
    model, batch = build("llava"), inputs("llava", "one image")
    words = torch.arange(5, 13)[None]
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=batch["input_ids"].shape[1] + 3)
    with Random(keep=0.3, layer=layer)(model), torch.no_grad():
        model(**batch, **with_cache(model, cache))
        with pytest.raises(UnsupportedCacheError, match="made for 28 tokens, .* has 33"):
            model(input_ids=words, **with_cache(model, cache))


def test_pruned_static_cache_outside_its_block():
    model, batch = build("llava"), inputs("llava", "one image")
    with Random(keep=0.3, layer=0)(model):
        out = generate(model, batch, 2, cache_implementation="static", disable_compile=True)
    with pytest.raises(UnsupportedCacheError, match="inside one"), torch.no_grad():
        model(input_ids=out.sequences[:, -1:], **with_cache(model, cache_of(out)))
