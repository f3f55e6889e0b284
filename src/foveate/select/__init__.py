"""Pure tensor maths that pruning methods share: tensors in, masks out, batched and ragged; no model in sight."""

from foveate.select.diversity import max_min_diversity
from foveate.select.greedy import suppression
from foveate.select.ranking import top_k

__all__ = ["max_min_diversity", "suppression", "top_k"]
