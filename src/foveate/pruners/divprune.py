"""DivPrune: keep the most diverse visual tokens, whatever the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from foveate import select
from foveate.pruners.base import SingleStagePruner, VisualTokens, option


@dataclass(frozen=True, kw_only=True)
class DivPrune(SingleStagePruner):
    """Keep the visual tokens that solve max-min diversity greedily: each next one is farthest from those kept.

    The first is the one whose nearest neighbour is farthest. Distance is 1 - cosine of the hidden states that enter
    `layer`; the paper cuts before the language model.

    Source: Alvar et al., "DivPrune", CVPR 2025 (arXiv 2503.02175), section 3; re-implemented from the paper.
    Ours: `first="outlier"`, a cheaper first pick.
    """

    name: ClassVar[str] = "divprune"
    paper: ClassVar[str] = "Alvar et al., CVPR 2025, arXiv 2503.02175"
    url: ClassVar[str] = "https://arxiv.org/abs/2503.02175"
    summary: ClassVar[str] = "the most diverse tokens, whatever the question"
    keeps_exactly: ClassVar[bool] = True

    layer: int = option(0, "cut before this decoder layer, counted from 0; 0 is before the language model", at_least=0)

    first: Literal["published", "outlier"] = option(
        "published", "begin with the token whose nearest neighbour is farthest, or with the one farthest from the mean"
    )

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        return select.max_min_diversity(tokens.features, k, valid=tokens.valid, first=self.first)
