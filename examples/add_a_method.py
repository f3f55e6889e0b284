"""A method of your own in a dozen lines: keep the visual tokens that differ most from the mean of their prompt.

python examples/add_a_method.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

import foveate
from foveate.pruners.base import ScorePruner, VisualTokens
from foveate.testing import check_laws


@dataclass(frozen=True, kw_only=True)
class FarFromMean(ScorePruner):
    """Keep the visual tokens that are farthest from their mean."""

    name = paper = summary = "far-from-mean"

    def score(self, tokens: VisualTokens) -> Tensor:
        features = tokens.features.float() * tokens.valid[..., None]  # (B, N, D), zeros for padding
        mean = features.sum(1, keepdim=True) / tokens.valid.sum(1)[:, None, None]
        return (features - mean).norm(dim=-1)


model, processor = foveate.tiny.load()
image = foveate.tiny.make_scene(np.random.default_rng(3)).pil()
inputs = processor(images=[image], text=foveate.tiny.prompt("what colour is the small circle?"), return_tensors="pt")
with FarFromMean(keep=0.25)(model) as pruned:
    model.generate(**inputs, max_new_tokens=8)
print(pruned.report)
for law in check_laws(model, inputs, FarFromMean(keep=0.25), samples=[inputs]):
    law.require()
    print("holds:", law.name)
