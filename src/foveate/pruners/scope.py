"""SCOPE: salient tokens that cover what those kept do not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner

CROWD = 32  # tokens whose gains are brought in date at a time


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
        keep = torch.zeros_like(tokens.valid)
        for row, places in enumerate(torch.minimum(k, tokens.present).tolist()):
            columns = tokens.valid[row].nonzero()[:, 0]
            unit = torch.nn.functional.normalize(tokens.vision[0][row, columns].float(), dim=-1)
            saliency = tokens.class_received[0][row, columns].pow(self.alpha)
            keep[row, columns[covering(unit @ unit.T, saliency, places, self.combine == "add")]] = True
        return keep


def covering(cosine: Tensor, saliency: Tensor, places: int, add: bool) -> Tensor:
    """The `places` tokens, in the order in which the greedy rule takes them.

    What a token adds only ever falls. So gains of earlier picks are bounds, and only as many are brought in date as it
    takes until the largest is: a few rows of the cosines (N, N) at each pick.
    """
    cover = torch.zeros_like(saliency)

    def gain(index: Tensor) -> Tensor:
        added = (cosine[index] - cover).clamp_(min=0).sum(-1)
        return added + saliency[index] if add else added * saliency[index]

    everyone = torch.arange(len(saliency), device=saliency.device)
    bound = torch.cat([gain(some) for some in everyone.split(CROWD)]) if places else saliency
    picks: list[Tensor] = []
    while len(picks) < places:
        fresh = torch.zeros_like(bound, dtype=torch.bool)
        pick = bound.argmax()
        while not bool(fresh[pick]):
            crowd = torch.cat([pick[None], bound.topk(min(CROWD, len(bound))).indices]).unique()
            bound[crowd] = torch.where(bound[crowd] == -torch.inf, bound[crowd], gain(crowd))
            fresh[crowd] = True
            pick = bound.argmax()
        picks.append(pick)
        bound[pick] = -torch.inf
        cover = torch.maximum(cover, cosine[pick])
    return torch.stack(picks) if picks else everyone[:0]
