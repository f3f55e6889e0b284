"""CDPruner: tokens that are relevant to the question and unlike each other, by a determinantal point process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import SingleStagePruner, VisualTokens, option

LEAST = 1e-6  # added to the relevance, which would be 0 for the least relevant token


@dataclass(frozen=True, kw_only=True)
class CDPruner(SingleStagePruner):
    """Keep the visual tokens that maximise, greedily, the determinant of similarity conditioned on relevance.

    The kernel is L = diag(r) S diag(r): S the cosines of the hidden states that enter `layer`, r the relevance to the
    question, brought to (0, 1] within a sample. With `theta`, r becomes exp(θ / (2 (1 - θ)) · r).

    Source: Zhang et al., "Beyond Attention or Similarity", NeurIPS 2025 (arXiv 2506.10967); written from the formula.
    Its relevance for LLaVA is minus the cosine of CLIP's embeddings of patch and question. Models of transformers hold
    no CLIP text tower; r is here the cosine to the mean text token, with a positive sign, before the min-max.

    Raises
    ------
    BudgetError
        When `theta` or another option makes no sense.
    """

    name: ClassVar[str] = "cdpruner"
    paper: ClassVar[str] = "Zhang et al., NeurIPS 2025, arXiv 2506.10967"
    url: ClassVar[str] = "https://arxiv.org/abs/2506.10967"
    summary: ClassVar[str] = "tokens relevant to the question and unlike each other, by a determinant"
    keeps_exactly: ClassVar[bool] = True

    layer: int = option(0, "cut before this decoder layer, counted from 0; 0 is before the language model", at_least=0)
    theta: float | None = option(
        None, "weight of relevance against diversity, in (0, 1); none: relevance as it is", over=0, under=1
    )

    def notes(self, depth: int) -> tuple[str, ...]:
        note = "cdpruner: relevance by the mean text token, as there is no CLIP text tower"
        return () if self.keeps_all else (note,)

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(tokens.features.float(), dim=-1)
        return select.low_rank_dpp(unit * self._relevance(tokens)[..., None], k, tokens.valid)

    def _relevance(self, tokens: VisualTokens) -> Tensor:
        """(B, N), of (0, 1] where valid."""
        cosine = torch.cosine_similarity(tokens.features.float(), tokens.mean_text.float()[:, None], dim=-1)
        low = cosine.masked_fill(~tokens.valid, torch.inf).amin(-1, keepdim=True)
        high = cosine.masked_fill(~tokens.valid, -torch.inf).amax(-1, keepdim=True)
        relevance = (cosine - low) / (high - low).clamp(min=torch.finfo(cosine.dtype).tiny) + LEAST
        if self.theta is not None:
            relevance = (self.theta / (2 * (1 - self.theta)) * relevance).exp()
        return relevance.masked_fill(~tokens.valid, 0)
