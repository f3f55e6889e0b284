"""A method that no paper has: what is hard for the engine, in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import Pruner, VisualTokens, option


@dataclass(frozen=True, kw_only=True)
class Uneven(Pruner):
    """Three cuts, each of which leaves every sample another number of tokens."""

    name: ClassVar[str] = "uneven"
    paper: ClassVar[str] = "none: for tests"
    summary: ClassVar[str] = "three cuts, other counts in each sample"

    keep: float = option(
        0.6, "share of the visual tokens left that each cut keeps, about; 1.0 keeps all", over=0, at_most=1
    )

    def layers(self, depth: int) -> tuple[int, ...]:
        return tuple(sorted({min(1, depth - 1), depth // 2, depth - 1}))

    def select(self, tokens: VisualTokens) -> Tensor:
        if self.keep == 1.0:
            return tokens.valid
        k = (tokens.present * self.keep).long() - tokens.dense % 3
        # the same in every batch: it depends on nothing but the token's number and the layer
        score = torch.sin(torch.arange(tokens.valid.shape[1], device=tokens.valid.device) * 7.0 + tokens.layer)
        return select.top_k(score.expand(tokens.valid.shape), k.clamp(min=1), tokens.valid)
