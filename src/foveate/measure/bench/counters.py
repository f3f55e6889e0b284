"""Bytes: what a KV cache holds, the most that a prefill has allocated at once, and the peak of a training step."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
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


EVERY = 0.01  # seconds between two looks at a process's memory
_STATUS = Path("/proc/self/statm")


class Meter:
    """A stopwatch that also looks at memory.

    On CUDA the peak is the allocator's; elsewhere it is the process's resident memory, looked at every 10 ms, which
    includes weights, optimizer, data and what the allocator has not given back.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.device = device
        self._peak, self._end = 0, threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def kind(self) -> str:
        """What the figures are."""
        if self.cuda:
            return "bytes allocated on the device, peak of the step"
        return f"resident memory of the process in bytes, looked at every {1000 * EVERY:.0f} ms, peak of the step"

    def start(self) -> None:
        """From here on."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _STATUS.exists():
            self._peak = _resident()
            self._end = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        self._began = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """`seconds`, and `peak_bytes` where memory can be seen."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        found = {"seconds": time.perf_counter() - self._began}
        if self.cuda:
            found["peak_bytes"] = float(torch.cuda.max_memory_allocated(self.device))
        elif self._thread is not None:
            self._end.set()
            self._thread.join()
            found["peak_bytes"] = float(max(self._peak, _resident()))
        return found

    def _watch(self) -> None:
        while not self._end.wait(EVERY):
            self._peak = max(self._peak, _resident())


def _resident() -> int:
    import resource

    return int(_STATUS.read_text().split()[1]) * resource.getpagesize()
