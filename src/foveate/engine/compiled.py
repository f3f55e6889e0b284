"""A model that was compiled runs as Python while a pruner is attached: code compiled before knows nothing of hooks.

`torch.compile` looks at a module's hooks when it compiles and, by default, never again. So hooks that come later would
do nothing, in silence. An attribute `forward` of the module's own it does look at, each time: with one, whatever was
compiled of this module, and by whomever, is not used until the attribute is gone again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from foveate.engine.arguments import cache_of

NOTE = "the model is compiled: while a pruner is attached it runs uncompiled"


def run_as_python(model: nn.Module, before: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
    """Keep compiled code from running `model` until the function that is returned is called.

    A decode step with a cache that `generate()` compiles for is left to it: that code is made with the hooks.

    Parameters
    ----------
    before
        Called with the keyword arguments of each forward; unlike a hook also where PEFT calls `forward` itself.
    """
    forward, own = model.forward, model.__dict__.get("forward")
    eager = torch.compiler.disable(forward)
    active = True

    @functools.wraps(forward)
    def uncompiled(*args: Any, **kwargs: Any) -> Any:
        if not active or _compiled_step(kwargs):
            return forward(*args, **kwargs)
        before(kwargs)
        return eager(*args, **kwargs)

    model.forward = uncompiled

    def undo() -> None:
        nonlocal active
        active = False  # someone may have wrapped this forward in turn, such as a Trainer for mixed precision
        if model.__dict__.get("forward") is uncompiled:
            _restore(model, own)

    return undo


def set_compiled_aside(model: nn.Module) -> list[Callable[[], None]]:
    """Take the compiled forwards out of a model and all its modules; calling what is returned puts them back."""
    undo: list[Callable[[], None]] = []
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:  # module.compile()
            undo.append(functools.partial(setattr, module, "_compiled_call_impl", module._compiled_call_impl))
            module._compiled_call_impl = None
        forward = module.__dict__.get("forward")
        if forward is None or not is_compiled(forward):
            continue
        undo.append(functools.partial(_restore, module, forward))
        # torch.compile(module) has the module in itself; module.forward = torch.compile(module.forward) has not
        inner: Any = module
        module.forward = inner._orig_mod.__call__ if is_wrapper(module) else forward._torchdynamo_orig_callable
    return undo


def is_wrapper(model: Any) -> bool:
    """Whether this is what `torch.compile(model)` returns."""
    return isinstance(model, nn.Module) and isinstance(model.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module)


def is_compiled(function: Any) -> bool:
    """Whether this is what `torch.compile(function)` returns."""
    return hasattr(function, "_torchdynamo_orig_callable") and not getattr(function, "_torchdynamo_disable", False)


def _compiled_step(kwargs: Mapping[str, Any]) -> bool:
    tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if tokens is None or tokens.shape[1] > 1:
        return False
    return bool(getattr(cache_of(kwargs), "is_compileable", False))


def _restore(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward


def in_python(hook: Callable) -> Callable:
    """The hook, which does nothing in compiled code: only decode steps with a static cache are compiled."""
    return functools.partial(_unless_compiling, hook)  # a copy of the model then meets the hook, which refuses


def _unless_compiling(hook: Callable, *args: Any) -> Any:
    return None if torch.compiler.is_compiling() else hook(*args)
