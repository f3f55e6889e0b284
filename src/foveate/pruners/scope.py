"""SCOPE: salient tokens that cover what those kept do not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.select.cosine import unit_rows
from foveate.tensors import take_rows


@dataclass(frozen=True, kw_only=True)
class SCOPE(EncoderPruner):
    """Take token by token the one with the largest product of saliency and of what it adds to coverage.

    A token covers another as far as their cosine goes, and a set as far as its best token; what one adds is the sum,
    over all tokens, of what it covers more than the set. Saliency is the attention of the class token to the power
    `alpha`. Cosines are of the outputs of the block whose attention is read. Where the encoder has no class token, the
    mean over the queries of all patches stands in, and the report says so.

    Source: "SCOPE", NeurIPS 2025 (arXiv 2510.24214); written from a description of the authors' code, whose attention
    is a sum over heads. A constant factor makes no difference but with `combine="add"`; there it is the mean here.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the encoder has no such block.
    """

    name: ClassVar[str] = "scope"
    paper: ClassVar[str] = "NeurIPS 2025, arXiv 2510.24214"
    url: ClassVar[str] = "https://arxiv.org/abs/2510.24214"
    summary: ClassVar[str] = "what the vision encoder's class token attends to and the kept ones do not cover"
    by_class_token: ClassVar[bool] = True

    alpha: float = option(1.0, "power of saliency, at least 0; 0 is coverage alone", at_least=0, under=math.inf)
    combine: Literal["multiply", "add"] = option("multiply", "saliency times what a token adds to coverage, or plus")

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return self.vision_attention(depth)

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        k, valid = torch.minimum(k, tokens.present), tokens.valid
        saliency, add = tokens.class_received[0].nan_to_num(0, 0, 0).pow(self.alpha), self.combine == "add"
        if valid.device.type != "cpu":
            return covering(tokens.vision[0], saliency, k, valid, add)
        keep = torch.zeros_like(valid)  # on a CPU one after another, each without its padding
        for row, there in enumerate(valid):
            real = there.nonzero()[:, 0]
            shown, own = tokens.vision[0][row, real][None], saliency[row, real][None]
            keep[row, real] = covering(shown, own, k[row : row + 1], there[real][None], add)[0]
        return keep


def covering(features: Tensor, saliency: Tensor, k: Tensor, valid: Tensor, add: bool) -> Tensor:
    """The tokens (B, N) bool that the greedy rule takes.

    Parameters
    ----------
    features
        (B, N, C) of any floating-point type.
    saliency
        (B, N).
    k
        (B,) long, at most the valid tokens.
    """
    unit = unit_rows(features.float()).masked_fill_(~valid[..., None], 0)

    def column(index: Tensor) -> Tensor:
        return torch.bmm(take_rows(unit, index), unit.mT)

    def worth(added: Tensor, index: Tensor) -> Tensor:
        own = saliency.gather(1, index)
        return added + own if add else added * own

    return select.covering(column, worth, k, valid)
