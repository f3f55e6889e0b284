"""Seconds and peak memory between two points of a run."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch

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
