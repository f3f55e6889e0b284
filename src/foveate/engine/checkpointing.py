"""Gradient checkpointing: hooks of a decoder layer run once, around the checkpoint.

Up to 5.21, transformers checkpoints a layer's `__call__`, hooks and all, so that they would run again in the backward
pass, when the forward pass they belong to is long over. Newer releases checkpoint `forward`, within the hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn

from foveate.engine.arguments import CACHE


@contextlib.contextmanager
def hooks_around_checkpoints(layers: Iterable[nn.Module]) -> Iterator[None]:
    """While open, layers that would be checkpointed with their hooks are checkpointed within them."""
    with contextlib.ExitStack() as undo:
        for layer in layers:
            if type(layer).__call__ is nn.Module.__call__ or not layer.training:
                continue
            if getattr(layer, "gradient_checkpointing", False):
                undo.enter_context(_swapped(layer))
        yield


@contextlib.contextmanager
def _swapped(layer: Any) -> Iterator[None]:
    own = layer.__dict__.get("forward")
    layer.forward = partial(_checkpointed, layer._gradient_checkpointing_func, layer.forward)
    layer.gradient_checkpointing = False
    try:
        yield
    finally:
        layer.gradient_checkpointing = True
        if own is None:
            del layer.forward
        else:
            layer.forward = own


def _checkpointed(checkpoint: Callable, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    for name, value in (("use_cache", False), *((name, None) for name in CACHE)):  # it would be filled a second time
        if name in kwargs:
            kwargs[name] = value
    return checkpoint(partial(forward, **kwargs), *args)
