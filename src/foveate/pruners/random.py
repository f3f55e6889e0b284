"""Random visual tokens: the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.pruners.base import ScorePruner, VisualTokens, option
from foveate.tensors import to_device


@dataclass(frozen=True, kw_only=True)
class Random(ScorePruner):
    """Keep visual tokens at random: the same ones for the same prompt length and seed, in any batch.

    The draw belongs to a token's rank among the visual tokens of its sample, so a batch gives what its samples give
    alone and the beams of one prompt agree.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "baseline"
    summary: ClassVar[str] = "a random draw; what every method must beat"

    layer: int = option(0, "cut before this decoder layer, counted from 0; 0 is before the language model", at_least=0)
    seed: int = option(0, "seed of the draw", at_least=-(2**63), at_most=2**64 - 1)

    def score(self, tokens: VisualTokens) -> Tensor:
        # Drawn on the CPU: the same tokens on every device.
        generator = torch.Generator().manual_seed(self.seed)
        draw = to_device(torch.rand(tokens.valid.shape[1], generator=generator), tokens.valid.device)
        rank = (tokens.valid.long().cumsum(-1) - 1).clamp(min=0)
        return draw[rank]
