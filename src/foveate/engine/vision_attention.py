"""How much attention each token of a vision encoder received in one of its blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.rows import column_sums
from foveate.errors import UnsupportedModelError

ATTENTIONS = ("self_attn", "attn", "attention")


def find_attention(block: nn.Module) -> nn.Module:
    """The attention of a block of the vision encoder.

    Raises
    ------
    UnsupportedModelError
        When there is none under a known name.
    """
    found = next((one for name, one in block.named_children() if name in ATTENTIONS), None)
    if found is None:
        raise UnsupportedModelError(f"no attention ({', '.join(ATTENTIONS)}) in {type(block).__name__}")
    return found


def received(query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> Tensor:
    """(B, L) attention that each token receives, summed over the queries, mean over the heads.

    Parameters
    ----------
    options
        The other arguments of the attention function: `scaling`, and where it is given several images as one, where
        they begin (`cu_seq_lens_q`).
    """
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    ends = options.get("cu_seq_lens_q")
    if ends is None:
        return column_sums(query, key, scale, mask).mean(1)
    sizes = ends.diff().tolist()
    parts = zip(query.split(sizes, 2), key.split(sizes, 2), strict=True)
    return torch.cat([column_sums(*part, scale).mean(1) for part in parts], -1)
