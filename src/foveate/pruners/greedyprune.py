"""GreedyPrune: salient tokens, no two of them too alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import SingleStagePruner, VisualTokens, option


@dataclass(frozen=True, kw_only=True)
class GreedyPrune(SingleStagePruner):
    """GreedyPrune, re-implemented from the abstract and reviews: take the most salient visual token that is not too
    similar to one already taken, until the budget is spent.

    Saliency is the cosine between a visual token's hidden state and the query's; two tokens are too similar when
    their cosine exceeds `threshold`. A threshold of 1 or more is plain top-k by saliency.

    Source: Pei, Sun, Fu, Wang, "GreedyPrune" (arXiv 2506.13166). The paper's text was not at hand. From its abstract
    and published reviews: the cosine saliency to the last text token in a shallow layer, the objective, and the
    pairwise limit. From a third party's design note: the greedy rule, threshold 0.9 and filling by saliency. Ours: the
    stage, `mean_text`, `stop`, `relax`, `center`. No parity with the paper's tables is claimed.
    """

    name: ClassVar[str] = "greedyprune"
    paper: ClassVar[str] = "Pei et al., 2025, arXiv 2506.13166 (from its abstract and reviews)"
    url: ClassVar[str] = "https://arxiv.org/abs/2506.13166"
    summary: ClassVar[str] = "the tokens most like the question by cosine, no two of them too alike"

    threshold: float = option(
        0.9,
        "two visual tokens above this cosine are too alike to keep both, in [-1, inf)",
        at_least=-1,
        under=math.inf,
    )
    query: Literal["last", "mean_text"] = option("last", "saliency to the last prompt token or to the mean text token")
    fill: Literal["saliency", "stop", "relax"] = option(
        "saliency", "when the threshold leaves too few: fill by saliency, stop short, or relax the threshold"
    )
    center: bool = option(False, "subtract the mean visual token before comparing visual tokens with each other")

    @property
    def keeps_exactly(self) -> bool:  # type: ignore[override]
        """Only "stop" may keep fewer than the budget."""
        return self.fill != "stop"

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        query = tokens.query if self.query == "last" else tokens.mean_text
        saliency = torch.cosine_similarity(tokens.features.float(), query.float()[:, None], dim=-1)
        features = tokens.features.float()
        if self.center:
            count = tokens.valid.sum(-1).clamp(min=1)[:, None, None]
            features = features - (features * tokens.valid[..., None]).sum(1, keepdim=True) / count
        return select.suppression(features, saliency, k, self.threshold, fill=self.fill, valid=tokens.valid)
