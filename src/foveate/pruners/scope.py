"""SCOPE: salient tokens that cover what those kept do not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.select.cosine import unit_rows
from foveate.tensors import take_rows, to_device

CROWD = 64  # tokens whose gains are brought in date at a time
PICKS = 16  # from one crowd at most
CROWDS = 8  # between two looks at a device whether all is picked
ROWS = 256  # of the cosines at a time


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
            return covering(tokens.vision[0], saliency, to_device(k, valid.device), valid, add)
        keep = torch.zeros_like(valid)  # on a CPU one after another, each without its padding
        for row, there in enumerate(valid):
            real = there.nonzero()[:, 0]
            shown, own = tokens.vision[0][row, real][None], saliency[row, real][None]
            keep[row, real] = covering(shown, own, k[row : row + 1], there[real][None], add)[0]
        return keep


def covering(features: Tensor, saliency: Tensor, k: Tensor, valid: Tensor, add: bool) -> Tensor:
    """The tokens (B, N) bool that the greedy rule takes.

    What a token adds only ever falls, so an earlier gain is a bound. The cosines of a small crowd, those with the
    highest bounds, are made anew, and as long as its best exceeds all bounds outside that is the next pick. Beside
    the unit vectors memory is O(B N).

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
    on_cpu, crowded = unit.device.type == "cpu", min(CROWD, unit.shape[1])
    cover, keep, left = torch.zeros_like(saliency), torch.zeros_like(valid), k[:, None].clone()

    def gain(cosine: Tensor, own: Tensor) -> Tensor:
        added = (cosine - cover[:, None]).clamp_(min=0).sum(-1)
        return added + own if add else added * own

    parts = [*zip(unit.split(ROWS, 1), saliency.split(ROWS, 1), strict=True)]
    bound = torch.cat([gain(torch.bmm(part, unit.mT), own) for part, own in parts], 1).masked_fill_(~valid, -torch.inf)
    while bool((left > 0).any()):
        for _ in range(1 if on_cpu else CROWDS):
            # 1. the crowd, and the best of what is not in it; of equal ones the first
            crowd, first = bound.topk(crowded).indices, bound.argmax(-1, keepdim=True)
            crowd[:, -1:] = torch.where((crowd == first).any(-1, keepdim=True), crowd[:, -1:], first)
            crowd = crowd.sort(dim=-1).values
            outside = bound.scatter(1, crowd, -torch.inf)
            rival = outside.argmax(-1, keepdim=True)
            limit = outside.gather(1, rival)
            cosine, own = torch.bmm(take_rows(unit, crowd), unit.mT), saliency.gather(1, crowd)
            gone = bound.gather(1, crowd) == -torch.inf
            # 2. picks from it
            for _ in range(PICKS):
                worth = gain(cosine, own).masked_fill_(gone, -torch.inf)
                best, at = worth.max(-1, keepdim=True).values, worth.argmax(-1, keepdim=True)
                pick = crowd.gather(1, at)
                taken = ((best > limit) | (best == limit) & (pick < rival)) & (left > 0)
                if on_cpu and not bool(taken.any()):
                    break
                keep.scatter_(1, pick, keep.gather(1, pick) | taken)
                cover = torch.where(taken, torch.maximum(cover, take_rows(cosine, at)[:, 0]), cover)
                gone = gone.scatter(1, at, gone.gather(1, at) | taken)
                left = left - taken.long()
            bound.scatter_(1, crowd, worth.masked_fill_(gone, -torch.inf))
    return keep
