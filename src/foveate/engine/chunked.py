"""Chunked prefill: `generate(prefill_chunk_size=...)` hands the model a long prompt in pieces.

Each piece would be pruned alone, with a budget and a question of its own: of the pieces, only the last one holds the
question. A forward pass cannot tell a piece from a prompt, so this looks where `generate()` starts to cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.methods import guard_method
from foveate.errors import UnsupportedModelError

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
