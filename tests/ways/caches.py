"""KV caches of other kinds than the dynamic one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from transformers import CompileConfig, DynamicCache, QuantizedCache
from transformers.cache_utils import Cache, QuantizedLayer

from foveate import FastV
from tests.tiny_models import build
from tests.ways.checks import agree, run
from tests.ways.ways import NotApplicable, way


@way("static cache")
def static(family: str) -> None:
    """`cache_implementation="static"`, nothing compiled."""
    with _forgotten(family):
        agree(run(family, cache_implementation="static", disable_compile=True))


@way("static cache, compiled decode")
def compiled(family: str) -> None:
    """Without Inductor: what is asked is whether the decode step is one graph, and right."""
    settings = CompileConfig(backend="eager", fullgraph=True, dynamic=False)
    settings._compile_all_devices = True  # else only where compiling pays
    torch.compiler.reset()
    with _forgotten(family):
        agree(run(family, "one image", FastV(keep=0.3), cache_implementation="static", compile_config=settings))


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
    depth = len(build(family).get_decoder().layers)
    cache = object.__new__(QuantizedCache)
    Cache.__init__(cache, layers=[Unquantised(residual_length=4) for _ in range(depth)])
    agree(run(family, past_key_values=cache))


@way("offloaded cache")
def offloaded(family: str) -> None:
    """`DynamicCache(offloading=True)`."""
    try:
        cache = DynamicCache(config=build(family).config.get_text_config(decoder=True), offloading=True)
    except (RuntimeError, AssertionError) as error:
        raise NotApplicable(f"needs a GPU ({error})") from None
    agree(run(family, past_key_values=cache))
