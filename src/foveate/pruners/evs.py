"""EVS: of a video keep the tokens that changed since the frame before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import Pruner, VisualTokens, option
from foveate.pruners.budget import check_share
from foveate.pruners.films import films

FIRST = 255.0  # the score of the first frame's tokens, above any change
ROWS = 512  # tokens compared at a time, or those of one frame


@dataclass(frozen=True, kw_only=True)
class EVS(Pruner):
    """Keep, of each video, the first frame and the tokens least like those at the same place one frame earlier.

    The change of a token is 1 - cosine to the token of the same row and column in the frame before, on the projected
    features that enter the language model. Of a video of T frames of P tokens, max(P, ⌊keep T P⌋) stay; images and
    separators stay whole.

    Source: "Efficient Video Sampling", arXiv 2510.14624, as vLLM and SGLang have it; written from a description of
    their rule. The paper compares the pixels of patches instead.

    Raises
    ------
    BudgetError
        When `keep` makes no sense.
    """

    name: ClassVar[str] = "evs"
    paper: ClassVar[str] = "NVIDIA, 2025, arXiv 2510.14624"
    url: ClassVar[str] = "https://arxiv.org/abs/2510.14624"
    summary: ClassVar[str] = "of videos, what changed since the frame before; images whole"
    uses_grids: ClassVar[bool] = True
    needs_all_tokens: ClassVar[bool] = True

    keep: float = option(
        0.22, "share of each video's tokens, at least one frame; 1.0 switches pruning off", check=check_share
    )

    def layers(self, depth: int) -> tuple[int, ...]:
        return (0,)

    def with_mean(self, share: float, config: Any) -> EVS:
        return dataclasses.replace(self, keep=share)

    def select(self, tokens: VisualTokens) -> Tensor:
        keep = tokens.valid.clone()
        if self.keep == 1.0:
            return keep
        for sample, columns in films(tokens):
            first = torch.full_like(columns[:1], FIRST, dtype=torch.float32)
            score = torch.cat([first, *_changes(tokens.features[sample], columns)]).flatten()
            k = max(columns.shape[1], int(self.keep * columns.numel() + 1e-9))
            keep[sample, columns.flatten()] = select.top_k(score[None], k)[0]
        return keep


def _changes(features: Tensor, columns: Tensor) -> Iterator[Tensor]:
    """Changes (t, P) from frame to frame of features (N, D) at columns (T, P), a few frames at a time."""
    number, size = columns.shape
    step = max(1, ROWS // size)
    for before in range(0, number - 1, step):
        frames = features[columns[before : before + step + 1]].float()
        change = 1 - torch.cosine_similarity(frames[1:], frames[:-1], dim=-1)
        yield change.masked_fill((frames[1:] == frames[:-1]).all(-1), 0)  # ties, where rounding says otherwise
