"""What a whole process shares, changed for the length of a block and then put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads inside the block, or as many as the block itself sets with None."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Seeds that are set inside the block, and numbers that are drawn there, change nothing after it.

    Of Python's, numpy's and torch's own generators, the last on the CPU and, where it is in use, on CUDA.
    """
    python, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that others seed
    try:
        with torch.random.fork_rng([*range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpys)  # noqa: NPY002
