"""Continuous batching: `generate_batch()` packs prompts and answers into one row over a paged cache.

The hooks refuse its cache, but they run in a thread of its manager, which logs what is raised there and hands back
failed requests. So it is refused where it is asked for, before there is a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from foveate.engine.methods import guard_method
from foveate.errors import UnsupportedModelError

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
