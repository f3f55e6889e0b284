"""Bytes: what a KV cache holds, and the most that a prefill has allocated at once."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

ON_CUDA = "the most that was allocated on the device at once, above what was held before"
ON_CPU = (
    "the most that torch's CPU allocator held at once, above what it held before: the sum of the allocations and "
    "frees in its profile, to the byte (what a maths library takes for itself is not in it)"
)


def peak_bytes(device: torch.device, work: Callable[[], Any]) -> tuple[Any, int | None]:
    """Do `work` and return its result and its peak memory above what was held before.

    Returns
    -------
    tuple
        The bytes are None on a device that does not report them.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return work(), None
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent_library(), torch.profiler.profile(activities=activities, profile_memory=True) as found:
        result = work()
    return result, _highest(found)


@contextlib.contextmanager
def _silent_library() -> Iterator[None]:
    """Keep the profiler's library from writing to standard error, which it does in any case."""
    try:
        before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no standard error
        yield
        return
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _highest(profile: Any) -> int | None:
    """Highest running sum of the allocations and frees."""
    results = getattr(getattr(profile, "profiler", None), "kineto_results", None)
    if results is None:
        return None
    events = [event for event in results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())  # stable: those of one instant stay as they came
    held = most = 0
    for event in events:
        held += event.nbytes()
        most = max(most, held)
    return most


def cache_bytes(cache: Any) -> int:
    """Return the bytes of memory that a KV cache holds, each piece of memory once.

    Parameters
    ----------
    cache
        Of transformers; also states of layers that have no keys and values.
    """
    seen: dict[int, int] = {}
    for layer in cache.layers:
        for value in vars(layer).values():
            for one in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(one, torch.Tensor) and one.ndim > 2:
                    storage = one.untyped_storage()
                    seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


FUSED = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


def attention_flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Return the operations of the two products of attention, the whole map, from (B, H, n, d) shapes.

    Query heads may share keys: each still has its own products.
    """
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (width + value[3])


def counted(work: Callable[[], Any]) -> tuple[Any, int]:
    """Do `work` and return its result and its operations (2 a multiply-add) in products of matrices.

    Sums, norms, comparisons and custom kernels are not counted, as everywhere.
    """
    from torch.utils.flop_counter import FlopCounterMode

    found = {getattr(torch.ops.aten, name): attention_flops for name in FUSED if hasattr(torch.ops.aten, name)}
    with FlopCounterMode(display=False, custom_mapping=found) as counter:
        result = work()
    return result, int(counter.get_total_flops())
