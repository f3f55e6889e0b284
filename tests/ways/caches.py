"""KV caches of other kinds than the dynamic one, and a prompt that is prefilled in chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, QuantizedCache
from transformers.cache_utils import Cache, QuantizedLayer

from foveate import FastV
from foveate.engine.arguments import with_cache
from foveate.pruners import Pruner
from tests.models.build import build, decoder
from tests.ways.checks import agree, run, unless_dense_fails
from tests.ways.ways import NotApplicable, way

FAILS = "transformers itself fails at it with this model, also without pruning"


@way("static cache")
def static(family: str) -> None:
    """`cache_implementation="static"`, nothing compiled."""
    options = dict(cache_implementation="static", disable_compile=True)
    with _forgotten(family):
        unless_dense_fails(lambda pruner: agree(run(family, pruner=pruner, **options)), FAILS)


@way("static cache, compiled decode", oldest=False)
def compiled(family: str) -> None:
    """Without Inductor: what is asked is whether the decode step is one graph, and right."""
    settings = CompileConfig(backend="eager", fullgraph=True, dynamic=False)
    settings._compile_all_devices = True  # else only where compiling pays
    options = dict(cache_implementation="static", compile_config=settings)

    def check(pruner: Pruner | None) -> None:
        torch.compiler.reset()
        counters.clear()
        agree(run(family, "one image", pruner, **options))
        assert counters["stats"]["unique_graphs"], "nothing was compiled"

    with _forgotten(family):
        unless_dense_fails(check, FAILS, FastV(keep=0.3))


@contextlib.contextmanager
def _forgotten(family: str) -> Iterator[None]:
    """Older releases keep a static cache on the model, which another way of this shared model must not find."""
    try:
        yield
    finally:
        build(family).__dict__.pop("_cache", None)


class Unquantised(QuantizedLayer):
    """A quantised layer that loses nothing, so that no library for it is needed."""

    def _quantize(self, tensor, axis):
        return tensor

    def _dequantize(self, q_tensor):
        return q_tensor


@way("quantised cache")
def quantised(family: str) -> None:
    """A layer of transformers' quantised cache whose quantisation loses nothing."""
    depth = len(decoder(build(family)).layers)
    cache = object.__new__(QuantizedCache)
    Cache.__init__(cache, layers=[Unquantised(residual_length=4) for _ in range(depth)])
    agree(run(family, **with_cache(build(family), cache)))


@way("offloaded cache")
def offloaded(family: str) -> None:
    """`DynamicCache(offloading=True)`."""
    try:
        cache = DynamicCache(config=build(family).config.get_text_config(decoder=True), offloading=True)
    except (RuntimeError, AssertionError) as error:
        raise NotApplicable(f"needs a GPU ({error})") from None
    agree(run(family, **with_cache(build(family), cache)))


@way("chunked prefill")
def chunked(family: str) -> None:
    """`prefill_chunk_size=8`."""
    unless_dense_fails(lambda pruner: agree(run(family, pruner=pruner, prefill_chunk_size=8)), FAILS)
