"""Uniform: visual tokens spread evenly over their images, whatever is on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import SingleStagePruner, VisualTokens, option
from foveate.pruners.btp.spread import spread


@dataclass(frozen=True, kw_only=True)
class Uniform(SingleStagePruner):
    """Keep visual tokens spread evenly over the grids of all images: farthest points by their places alone.

    Grids share the budget by their size. Separators come last.
    """

    name: ClassVar[str] = "uniform"
    paper: ClassVar[str] = "baseline"
    summary: ClassVar[str] = "tokens spread evenly over the image; a baseline"
    uses_grids: ClassVar[bool] = True
    keeps_exactly: ClassVar[bool] = True

    layer: int = option(0, "cut before this decoder layer, counted from 0; 0 is before the language model", at_least=0)

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        keep = spread(tokens, k)
        missing = k.to(keep.device) - keep.sum(-1)
        return keep | select.top_k(torch.zeros_like(tokens.position).float(), missing, tokens.valid & ~keep)
