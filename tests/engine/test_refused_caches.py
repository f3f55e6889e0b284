"""Caches that cannot be pruned are refused in one sentence, before they are touched."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import DynamicLayer, QuantizedLayer

from foveate import Random
from foveate.engine import attach
from foveate.engine.arguments import with_cache
from foveate.errors import UnsupportedCacheError
from tests.engine import window_models
from tests.models.build import build, generate, inputs
from tests.models.sizes import LAYERS


class Quantised(QuantizedLayer):
    """What a backend's layer is; the backends themselves are packages of their own."""

    def _quantize(self, tensor, axis):
        return tensor

    def _dequantize(self, tensor):
        return tensor


class Indexed(DynamicLayer):
    """A layer that keeps more than keys and values, such as those of sparse attention."""


def quantised():
    cache = DynamicCache()
    cache.layers, cache.layer_class_to_replicate = [Quantised() for _ in range(LAYERS)], None
    return cache


def indexed():
    cache = DynamicCache()
    cache.layers, cache.layer_class_to_replicate = [Indexed() for _ in range(LAYERS)], None
    return cache


def offloaded():
    cache = DynamicCache()
    cache.offloading = True  # as DynamicCache(offloading=True), which needs a GPU's streams
    return cache


CACHES = {
    "quantised": (quantised, "does not support a quantised KV cache"),
    "more than keys and values": (indexed, "does not support KV cache layers of type Indexed"),
    "offloaded": (offloaded, "does not support an offloaded KV cache"),
    "encoder and decoder": (
        lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()),
        "does not support the KV cache of an encoder-decoder model",
    ),
    "not a cache": (list, "needs a transformers Cache, got list"),
}


@pytest.mark.parametrize("what", CACHES)
def test_unsupported_cache(what):
    model, batch = build("llava"), inputs("llava", "one image")
    make, message = CACHES[what]
    cache = make()
    with pytest.raises(UnsupportedCacheError, match=message), Random(keep=0.5, layer=2)(model), torch.no_grad():
        model(**batch, **with_cache(model, cache))
    if what not in ("not a cache", "encoder and decoder"):
        assert {type(layer) for layer in cache.layers} <= {Quantised, Indexed, DynamicLayer}
        assert cache.get_seq_length() == 0
    dense = generate(model, batch, 2)
    with Random(keep=1.0)(model):
        same = generate(model, batch, 2)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(same.logits, dense.logits, strict=True))


def test_static_window():
    model, batch = window_models.build("gemma3"), window_models.window_inputs("gemma3", "one image")
    pruner, family = Random(keep=0.5, layer=2), window_models.FAMILY["gemma3"]
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    message = "does not support static caches with sliding windows"
    with pytest.raises(UnsupportedCacheError, match=message), attach(model, pruner, family=family):
        generate(model, batch, 3, **with_cache(model, cache))
    assert not any(layer.get_seq_length() for layer in cache.layers)
    with pytest.raises(UnsupportedCacheError, match=message), attach(model, pruner, family=family):
        generate(model, batch, 3, cache_implementation="static")
