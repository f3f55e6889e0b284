"""What transformers and torch do beside a forward pass, and what pruning needs or refuses of it: attention backends,
chunked prefill, gradient checkpointing, compiled calls, continuous batching.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask

from foveate.engine.arguments import CACHE, cache_of
from foveate.engine.forward_pass import ForwardPass
from foveate.errors import FoveateError, ModelInUseError, UnsupportedCacheError, UnsupportedModelError
from foveate.tensors import on_cpu_by_default


def takes_flat_masks(config: Any) -> bool:
    """Whether the backend takes (B, K) padding masks and works out the rest itself, as flash attention does."""
    name = str(config._attn_implementation)
    make = ALL_MASK_ATTENTION_FUNCTIONS.get(name)  # kernels from the Hub have names of their own
    return "flash" in name if make is None else make is flash_attention_mask


def check_backend(config: Any, forward: ForwardPass, cache: Any, pruned: bool) -> None:
    """Raise if the backend would get a forward pass of several tokens wrong.

    Parameters
    ----------
    config
        Of the decoder.
    pruned
        Whether the cache holds pruned layers.

    Raises
    ------
    UnsupportedCacheError
        For a static cache with a backend whose masks are not tensors of all rows and keys.
    UnsupportedModelError
        For flash attention with a sliding window that is shorter than the prompt: the kernels count the keys that are
        left, and each row would need another count.
    """
    flat = takes_flat_masks(config)
    static = isinstance(cache, Cache) and any(isinstance(layer, StaticLayer) for layer in getattr(cache, "layers", ()))
    if static and forward.prompt is not None and (flat or config._attn_implementation == "flex_attention"):
        raise UnsupportedCacheError(
            f"pruning supports static caches with sdpa and eager attention, not with {config._attn_implementation}"
        )
    window = _window(config)
    if not flat or window is None or not (forward.prompt is not None or pruned):
        return
    past = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
    if past + forward.length > window:
        raise UnsupportedModelError(
            f"flash attention cannot prune a prompt of {past + forward.length} tokens in layers with a window of "
            f'{window}, as it counts the tokens that are left: use attn_implementation="sdpa"'
        )


def _window(config: Any) -> int | None:
    """The sliding window of some layer; None where every layer sees everything."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not any("sliding" in str(kind) for kind in kinds):
        return None
    return getattr(config, "sliding_window", None)


NO_CHUNKS = (
    "pruning does not support chunked prefill, which would prune each chunk alone: leave prefill_chunk_size away"
)


def refuse_chunks(model: nn.Module, visual_ids: tuple[int, ...], active: Callable[[], bool]) -> Callable[[], None]:
    """Raise when `generate()` is about to cut a prompt with images, until the function that is returned is called.

    Parameters
    ----------
    active
        Whether the pruner is at work now.
    """

    def has_images(ids: Tensor) -> bool:
        return bool(torch.isin(ids, torch.tensor(visual_ids, device=ids.device)).any())

    def check(input_ids: Tensor, generation_config: Any, *args: Any, **kwargs: Any) -> None:
        size = getattr(generation_config, "prefill_chunk_size", None)
        if size is not None and size < input_ids.shape[1] and active() and has_images(input_ids):
            raise UnsupportedModelError(NO_CHUNKS)

    return guard_method(model, "_prefill", check)


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
    try:
        layer.forward = partial(_checkpointed, layer._gradient_checkpointing_func, layer.forward)
        layer.gradient_checkpointing = False
        yield
    finally:
        layer.gradient_checkpointing = True
        _restore(layer, own)


def _checkpointed(checkpoint: Callable, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    for name, value in (("use_cache", False), *((name, None) for name in CACHE)):  # it would be filled a second time
        if name in kwargs:
            kwargs[name] = value
    return checkpoint(partial(forward, **kwargs), *args)


NOTE = "the model is compiled: while a pruner is attached it runs uncompiled"


FREED = "foveate.detach(model) freed this model while this thread was in a forward pass of it: run the model again"


def run_as_python(
    model: nn.Module, before: Callable[[Mapping[str, Any]], None], freed: Callable[[bool], bool]
) -> Callable[[], None]:
    """Keep compiled code from running `model` until the function that is returned is called.

    A decode step with a cache that `generate()` compiles for is left to it: that code is made with the hooks.

    Parameters
    ----------
    before
        Called with the arguments of each forward by name, and with none after it; unlike a hook also where PEFT calls
        `forward` itself.
    freed
        Called with whether a forward failed: the hooks were taken off in the midst of it, and what came of it is
        nothing.
    """
    forward, own = model.forward, model.__dict__.get("forward")
    eager = torch.compiler.disable(forward)
    names = tuple(inspect.signature(forward).parameters)
    active = True

    @functools.wraps(forward)
    def uncompiled(*args: Any, **kwargs: Any) -> Any:
        if not active or _compiled_step(kwargs):
            return forward(*args, **kwargs)
        before({**dict(zip(names, args, strict=False)), **kwargs})
        try:
            output = eager(*args, **kwargs)
        except Exception as error:
            if freed(True) and not isinstance(error, FoveateError):
                raise ModelInUseError(FREED) from error
            raise
        finally:
            before({})  # what a call that failed early was given is nothing to the next one
        if freed(False):
            raise ModelInUseError(FREED)
        return output

    def undo() -> None:
        nonlocal active
        active = False  # someone may have wrapped this forward in turn, such as a Trainer for mixed precision
        if model.__dict__.get("forward") is uncompiled:
            _restore(model, own)

    uncompiled.foveate_undo = undo  # type: ignore[attr-defined]
    model.forward = uncompiled
    return undo


def set_compiled_aside(model: nn.Module, undo: list[Callable[[], None]]) -> None:
    """Take the compiled forwards out of a model and its modules; calling what is added to `undo` puts them back."""
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
        module.__dict__.pop("forward", None)
    else:
        module.forward = forward


def in_python(hook: Callable) -> Callable:
    """The hook, which does nothing in compiled code: only decode steps with a static cache are compiled."""
    return functools.partial(_unless_compiling, hook)  # a copy of the model then meets the hook, which refuses


def _unless_compiling(hook: Callable, *args: Any) -> Any:
    return None if torch.compiler.is_compiling() else on_cpu_by_default(hook, *args)


# `generate(cache_implementation="paged")` comes through the first; each may call the next
ENTRIES = ("generate_batch", "continuous_batching_context_manager", "init_continuous_batching")
NO_CONTINUOUS_BATCHING = (
    "pruning does not support continuous batching ({}): call generate() with a padded batch, or, to answer dense, "
    "detach the pruner or use paused()"
)


def refuse_continuous_batching(model: nn.Module, active: Callable[[], bool]) -> list[Callable[[], None]]:
    """Raise where continuous batching is asked for, until the functions that are returned are called.

    Parameters
    ----------
    active
        Whether the pruner is at work now.
    """

    def entry(name: str) -> Callable[[], None]:
        def check(*args: Any, **kwargs: Any) -> None:
            if active():
                raise UnsupportedModelError(NO_CONTINUOUS_BATCHING.format(name))

        return guard_method(model, name, check)

    return [entry(name) for name in ENTRIES]


def guard_method(model: nn.Module, name: str, check: Callable[..., None]) -> Callable[[], None]:
    """Call `check` before each call of `model.<name>`, until the function that is returned is called.

    Where the model has no such method, nothing is done.

    Parameters
    ----------
    check
        Called with the arguments of the method; what it raises leaves at the call.
    """
    method: Any = getattr(model, name, None)
    if method is None:
        return lambda: None
    own, present = model.__dict__.get(name), name in model.__dict__
    active = True

    @functools.wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if active:
            check(*args, **kwargs)
        return method(*args, **kwargs)

    def undo() -> None:
        nonlocal active
        active = False  # someone may have wrapped this method in turn, and then it stays where it is
        if model.__dict__.get(name) is not checked:
            return
        if present:
            model.__dict__[name] = own
        else:
            del model.__dict__[name]

    checked.foveate_undo = undo  # type: ignore[attr-defined]
    model.__dict__[name] = checked
    return undo


def sweep(model: nn.Module) -> None:
    """Take off a model whatever foveate's engine put on its modules, also where nobody holds a handle to it."""
    for module in model.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            hooks = module.__dict__[kind]
            for key in [key for key, hook in list(hooks.items()) if _is_ours(hook)]:
                for table in (kind, f"{kind}_with_kwargs", f"{kind}_always_called"):
                    module.__dict__.get(table, {}).pop(key, None)
        for value in list(module.__dict__.values()):
            undo = getattr(value, "foveate_undo", None) if callable(value) else None
            if undo is not None:
                undo()
        forward = module.__dict__.get("forward")
        if isinstance(forward, functools.partial) and forward.func is _checkpointed:
            swapped: Any = module
            swapped.gradient_checkpointing = True
            _restore(module, None if forward.args[1] == type(module).forward.__get__(module) else forward.args[1])


def _is_ours(hook: Any) -> bool:
    """Whether a hook is a function or method of the engine, perhaps with arguments."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith("foveate.engine.")
