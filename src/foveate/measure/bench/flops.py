"""Floating-point operations by torch's own counter, attention on a CPU among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
