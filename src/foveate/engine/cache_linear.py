"""Cache layers that hold a running state of fixed size, and no keys and values: linear attention, convolutions.

They are passed through as they are. What was removed before such a layer is not in its state, what was removed behind
it is, and no cut, crop or compaction can take it out again.
"""

from __future__ import annotations

from typing import Any

from transformers import cache_utils

# older releases have no such layers; their hybrid models bring caches of their own, which `check_cache` refuses
STATE_LAYERS: frozenset[type] = frozenset(
    getattr(cache_utils, name) for name in ("LinearAttentionLayer",) if hasattr(cache_utils, name)
)


def holds_state(layer: Any) -> bool:
    """Whether a cache layer holds a state of fixed size, and no keys and values."""
    return type(layer) in STATE_LAYERS


def has_state(layer: Any) -> bool:
    """Whether such a layer has seen anything yet."""
    seen = layer.has_previous_state
    return any(seen.values()) if isinstance(seen, dict) else bool(seen)
