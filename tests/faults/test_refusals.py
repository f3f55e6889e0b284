"""A pruned KV cache that is refused is left as it was, and goes on where it may as if nothing had been asked of it."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache, StaticLayer

from foveate import BTP, FastV, Random
from foveate.engine import attach
from foveate.engine.arguments import cache_of, with_cache
from foveate.engine.cache import AnyPrunedLayer, holds_state
from foveate.engine.cache_layers import GUARDED
from foveate.errors import UnsupportedCacheError, UnsupportedModelError
from foveate.testing.uneven import Uneven
from tests.models.build import FAMILIES, WITH_STATES, build, decoder, inputs

KINDS = [name for name in ("llava", "qwen2_5_vl", "gemma3") if name in FAMILIES] + [
    name for name in WITH_STATES if name == "qwen3_5"
]
WORD = torch.tensor([[7]])
NEW_CROP = "tokens_to_remove" in inspect.signature(DynamicLayer.crop).parameters  # older ones take what is left


def content(cache):
    """All that a cache holds, by layer."""
    out = []
    for layer in cache.layers:
        tensors = {name: value.clone() for name, value in vars(layer).items() if isinstance(value, torch.Tensor)}
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                tensors |= {f"{name}.{key}": v.clone() for key, v in value.items() if isinstance(v, torch.Tensor)}
        out.append(tensors)
    return out


def same(first, second):
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name


def prefill(model, family, cache=None):
    given = {} if cache is None else with_cache(model, cache)
    return cache_of(model(**inputs(family, "one image"), **given, use_cache=True))


def whole_mask(length):
    """A mask of the user's own, for one more token: transformers makes none then, and asks for no sizes."""
    return torch.zeros(1, 1, 1, length)


@pytest.mark.parametrize("place", ["detached", "paused", "decoder alone", "another's pause", "own mask"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("family", KINDS)
def test_a_refusal_changes_nothing(family, kind, place):
    if kind == "static" and family != "llava":
        pytest.skip("static caches are pruned in one way for all")
    if family in WITH_STATES and place == "own mask":
        pytest.skip("a state is held by no cache layer that could be asked first")
    model, method = build(family), Random(keep=0.3, layer=2)
    length = inputs(family, "one image")["input_ids"].shape[1]
    with torch.no_grad():
        with attach(model, method) as handle:
            caches = []
            for _ in range(2):
                cache = (
                    StaticCache(config=model.config.get_text_config(), max_cache_len=length + 4)
                    if kind == "static"
                    else None
                )
                caches.append(prefill(model, family, cache))
            cache, untouched = caches
            before = content(cache)
            assert not isinstance(cache.layers[0], AnyPrunedLayer)
            if place == "paused":
                with handle.paused(), pytest.raises(UnsupportedCacheError, match="while its pruner is paused"):
                    model(input_ids=WORD, **with_cache(model, cache))
            elif place == "decoder alone":
                with pytest.raises(UnsupportedCacheError, match="call the model"):
                    decoder(model)(inputs_embeds=torch.zeros(1, 1, 32), **with_cache(decoder(model), cache))
        if place in ("detached", "own mask"):
            mask = {} if place == "detached" else {"attention_mask": whole_mask(length + 1)}
            with pytest.raises(UnsupportedCacheError, match="inside one"):
                model(input_ids=WORD, **mask, **with_cache(model, cache))
        elif place == "another's pause":
            refused = pytest.raises(UnsupportedCacheError, match="while its pruner is paused")
            with attach(model, FastV(keep=0.5)) as other, other.paused(), refused:
                model(input_ids=WORD, **with_cache(model, cache))
        same(content(cache), before)
        with attach(model, method):
            after, right = (model(input_ids=WORD, **with_cache(model, one)).logits for one in (cache, untouched))
    assert torch.equal(after, right)


@pytest.mark.parametrize("family", KINDS)
def test_every_layer_with_keys_guards_the_cache(family):
    model = build(family)
    with BTP(stages=[(2, 0.6, 0.5), (4, 0.3, 0.5)])(model), torch.no_grad():
        cache = prefill(model, family)
        guarded = (*GUARDED.values(), AnyPrunedLayer)
        assert all(isinstance(layer, guarded) or holds_state(layer) for layer in cache.layers)
        dense = cache_of(model(input_ids=torch.arange(5, 9)[None], use_cache=True))
        assert not any(isinstance(layer, guarded) for layer in dense.layers)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
def test_a_copy_goes_on_where_the_cache_may(copied):
    model = build("llava")
    with Random(keep=0.3, layer=2)(model), torch.no_grad():
        cache = prefill(model, "llava")
        if copied == "deepcopy":
            twin = copy.deepcopy(cache)
        else:
            file = io.BytesIO()
            torch.save(cache, file)
            file.seek(0)
            twin = torch.load(file, weights_only=False)
        out = [model(input_ids=WORD, **with_cache(model, one)).logits for one in (twin, cache)]
        assert torch.equal(*out)
    with pytest.raises(UnsupportedCacheError, match="inside one"), torch.no_grad():
        model(input_ids=WORD, **with_cache(model, twin))


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_a_reset_cache_guards_nothing(kind):
    model, batch = build("llava"), inputs("llava", "one image")
    options = {"max_cache_len": batch["input_ids"].shape[1] + 2} if kind is StaticCache else {}
    cache = kind(config=model.config.get_text_config(), **options)
    with torch.no_grad():
        with Random(keep=0.3, layer=2)(model):
            prefill(model, "llava", cache)
        cache.reset()
        assert {type(layer) for layer in cache.layers[:2]} <= set(GUARDED)


def step(model, cache, words, mask):
    return model(input_ids=words, attention_mask=mask, **with_cache(model, cache)).logits


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("turns", [1, 2])
def test_cropping_ragged_turns(kind, compact, turns):
    """Tokens taken off again leave what a conversation that never had them holds; samples kept different numbers."""
    if kind == "static" and not hasattr(StaticLayer, "crop") and not compact:
        pytest.skip("this transformers crops no static cache, of which the first layers are its own")
    model, batch = build("llava"), inputs("llava", "ragged")
    rows, length = batch["input_ids"].shape
    mask = batch["attention_mask"]
    question = torch.arange(11, 16).repeat(rows, 1)
    method = Uneven(compact_cache=compact)

    def talk(extra):
        cache = (
            StaticCache(config=model.config.get_text_config(), max_cache_len=3 * length)
            if kind == "static"
            else DynamicCache(config=model.config.get_text_config())
        )
        seen = mask
        model(**batch, **with_cache(model, cache))
        for _ in range(turns - 1):
            seen = torch.cat([seen, mask], 1)
            model(**{**batch, "attention_mask": seen}, **with_cache(model, cache))
        if extra:
            more = torch.cat([seen, torch.ones_like(question[:, :3])], 1)
            step(model, cache, question[:, :3], more)
            cache.crop(-3 if NEW_CROP else seen.shape[1])
        return step(model, cache, question, torch.cat([seen, torch.ones_like(question)], 1))

    with attach(model, method), torch.no_grad():
        torch.testing.assert_close(talk(True), talk(False), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cropping_into_what_was_pruned_unevenly(kind):
    """Each sample keeps the slots of the positions that are left, whatever their number, with their keys."""
    model, batch = build("llava"), inputs("llava", "ragged")
    mask = batch["attention_mask"]
    length = mask.shape[1]
    cache = (
        StaticCache(config=model.config.get_text_config(), max_cache_len=2 * length + 2)
        if kind == "static"
        else DynamicCache(config=model.config.get_text_config())
    )
    with attach(model, Uneven()) as handle, torch.no_grad():
        model(**batch, **with_cache(model, cache))
        model(**{**batch, "attention_mask": torch.cat([mask, mask], 1)}, **with_cache(model, cache))
        assert len({len(kept) for kept in handle.report.prefills[-1].stages[0].kept}) > 1
    for left in range(1, 2 * length):
        for layer in cache.layers:
            if not isinstance(layer, AnyPrunedLayer):
                continue
            cut = copy.deepcopy(layer)
            cut.crop(left - 2 * length if kind == "static" or NEW_CROP else left)
            assert int(cut.get_seq_length()) == left
            for row, (now, before) in enumerate(zip(cut.slots, layer.slots, strict=True)):
                stays = (before >= 0) & (before < left)
                assert torch.equal(now[now >= 0], before[stays])
                assert torch.equal(cut.keys[row][:, now >= 0], layer.keys[row][:, stays])
                assert torch.equal(cut.values[row][:, now >= 0], layer.values[row][:, stays])
            if kind == "static":
                assert int(cut.cumulative_length) == int((cut.slots >= 0).nonzero()[:, 1].max() + 1)


def test_cropping_more_than_there_is_leaves_nothing():
    model = build("llava")
    with attach(model, Random(keep=0.3, layer=2)), torch.no_grad():
        cache = prefill(model, "llava")
        for layer in cache.layers[2:]:
            layer.crop(-1000)
            assert layer.get_seq_length() == layer.keys.shape[-2] == 0


@pytest.mark.skipif("gemma3" not in FAMILIES, reason="no model with a sliding window here")
def test_a_crop_that_a_window_refuses_crops_no_layer():
    model = build("gemma3")
    with attach(model, Random(keep=0.3, layer=2)), torch.no_grad():
        cache = prefill(model, "gemma3")
        for layer in cache.layers:
            if hasattr(layer, "sliding_window"):
                layer.sliding_window = 4
        before = content(cache)
        with pytest.raises(UnsupportedCacheError, match="left the sliding window"):
            cache.crop(-1 if NEW_CROP else cache.get_seq_length() - 1)
    same(content(cache), before)


def turn_of(family, batch, past, **more):
    """The arguments of a turn that begins after `past` tokens, for a batch whose positions are counted on."""
    rows, length = batch["input_ids"].shape
    mask = torch.cat([torch.ones(rows, past, dtype=torch.long), batch["attention_mask"]], 1)
    positions = torch.arange(past, past + length).expand(rows, -1)
    if family == "qwen3_5":
        positions = positions.expand(4, -1, -1)
    return {**batch, "attention_mask": mask, "position_ids": positions, **more}


STATES = [family for family in ("qwen3_5", "lfm2_vl", "minicpmv4_6") if family in WITH_STATES]


@pytest.mark.parametrize("per", ["prompt", "image"])
@pytest.mark.parametrize("family", STATES)
def test_samples_that_will_keep_different_numbers_are_refused_before_a_state_has_seen_them(family, per):
    """With a budget for each image the number is not known before it was chosen."""
    model, batch = build(family), inputs(family, [[3, None, 2], [3, None, 2]])  # of two sizes
    words = torch.tensor([[5, 6, 7], [8, 9, 3]])
    says = "keep different numbers of visual tokens" if per == "prompt" else "random finds its number only then"
    with Random(keep=0.3, layer=3, per=per)(model), torch.no_grad():
        cache, untouched = (cache_of(model(input_ids=words, use_cache=True)) for _ in range(2))
        before = content(cache)
        with pytest.raises(UnsupportedCacheError, match=says):
            model(**turn_of(family, batch, 3), **with_cache(model, cache))
        same(content(cache), before)
        after, right = (
            model(input_ids=torch.tensor([[4], [4]]), **with_cache(model, one)).logits for one in (cache, untouched)
        )
    assert torch.equal(after, right)


UNKNOWN = {
    "cu_seq_lens_q": ("packed sequences", lambda length: torch.tensor([0, length])),
    "weight_of_each_token": ("one entry a token", lambda length: torch.ones(1, length)),
}


@pytest.mark.parametrize("name", list(UNKNOWN))
@pytest.mark.parametrize("family", KINDS)
def test_an_argument_that_cannot_be_cut_is_refused_before_the_first_layer(family, name):
    model, batch = build(family), inputs(family, "one image")
    length = batch["input_ids"].shape[1]
    says, value = UNKNOWN[name]
    with Random(keep=0.3, layer=3)(model), torch.no_grad():
        cache = cache_of(model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True))
        before = content(cache)
        with pytest.raises(UnsupportedModelError, match=says):
            model(**turn_of(family, batch, 3, **{name: value(length)}), **with_cache(model, cache))
        same(content(cache), before)


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("turn", ["words", "image"])
def test_a_static_cache_without_room_is_refused_before_the_first_layer(layer, compact, turn):
    model, batch = build("llava"), inputs("llava", "one image")
    length = batch["input_ids"].shape[1]
    more = {"input_ids": torch.full((1, 6), 7)} if turn == "words" else turn_of("llava", batch, length)
    with Random(keep=0.3, layer=layer, compact_cache=compact)(model), torch.no_grad():
        cache = prefill(model, "llava", StaticCache(config=model.config.get_text_config(), max_cache_len=length + 4))
        before = content(cache)
        with pytest.raises(UnsupportedCacheError, match=f"was made for {length + 4} tokens, the conversation now has"):
            model(**more, **with_cache(model, cache))
        same(content(cache), before)
