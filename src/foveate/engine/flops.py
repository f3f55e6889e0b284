"""Closed formula for the floating-point operations of a prefill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foveate.pruners.base import STATES

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
MORE = ("num_kv_shared_layers", "hidden_size_per_layer_input")  # layers with less to do, or more


def prefill_flops(config: Any, tokens: Sequence[float]) -> float | None:
    """Operations (2 a multiply-add) of the decoder layers for one sample; None for a layer the formula does not know.

    A layer with n tokens costs 4ndq + 4ndk + 4n²q + 6ndm: query and output projections, keys and values, the full
    attention map (as torch's counter counts it) and a gated MLP; d hidden, q and k query and key-value width, m MLP
    width. Papers often state multiply-adds, on visual tokens only, with q = k = d: 4nd² + 2n²d + 3ndm (BTP, FastV).

    Parameters
    ----------
    config
        The text config.
    tokens
        Tokens that enter each layer, text and visual.
    """
    if getattr(config, "is_heterogeneous", False):  # Gemma 4: heads of two sizes
        return None
    hidden, width = getattr(config, "hidden_size", None), getattr(config, "intermediate_size", None)
    heads = getattr(config, "num_attention_heads", None)
    other = any(getattr(config, name, None) for name in (*EXPERTS, *MORE))
    other = other or bool(STATES & set(getattr(config, "layer_types", None) or ()))
    if other or not (hidden and width and heads):
        return None
    size = getattr(config, "head_dim", None) or hidden // heads
    query, key = heads * size, (getattr(config, "num_key_value_heads", None) or heads) * size
    linear = hidden * (4 * query + 4 * key + 6 * width)
    return float(sum(n * linear + 4 * n * n * query for n in tokens))
