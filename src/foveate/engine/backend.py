"""What an attention backend can be told, and what it therefore cannot do with tokens that have gaps between them."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import Cache, StaticLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask

from foveate.engine.forward_pass import Frame
from foveate.errors import UnsupportedCacheError, UnsupportedModelError


def takes_flat_masks(config: Any) -> bool:
    """Whether the backend takes (B, K) padding masks and works out the rest itself, as flash attention does."""
    name = str(config._attn_implementation)
    make = ALL_MASK_ATTENTION_FUNCTIONS.get(name)  # kernels from the Hub have names of their own
    return "flash" in name if make is None else make is flash_attention_mask


def check_backend(config: Any, frame: Frame, cache: Any, pruned: bool) -> None:
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
    if static and frame.prompt is not None and (flat or config._attn_implementation == "flex_attention"):
        raise UnsupportedCacheError(
            f"pruning supports static caches with sdpa and eager attention, not with {config._attn_implementation}"
        )
    window = _window(config)
    if not flat or window is None or not (frame.prompt is not None or pruned):
        return
    past = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
    if past + frame.length > window:
        raise UnsupportedModelError(
            f"flash attention cannot prune a prompt of {past + frame.length} tokens in layers with a window of "
            f'{window}, as it counts the tokens that are left: use attn_implementation="sdpa"'
        )


def _window(config: Any) -> int | None:
    """The sliding window of some layer; None where every layer sees everything."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not any("sliding" in str(kind) for kind in kinds):
        return None
    return getattr(config, "sliding_window", None)
