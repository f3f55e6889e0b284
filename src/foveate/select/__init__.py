"""Pure tensor maths that pruning methods share: tensors in, masks out, batched and ragged; no model in sight."""

from foveate.select.cover import covering
from foveate.select.diversity import max_min_diversity
from foveate.select.dpp import dpp, low_rank_dpp
from foveate.select.nms import suppression
from foveate.select.spatial import spatial_order, spatial_seed
from foveate.select.top_k import rebalanced_top_k, top_k

__all__ = [
    "covering",
    "dpp",
    "low_rank_dpp",
    "max_min_diversity",
    "rebalanced_top_k",
    "spatial_order",
    "spatial_seed",
    "suppression",
    "top_k",
]
