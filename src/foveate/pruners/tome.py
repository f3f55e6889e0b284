"""ToMe: merge pairs of like tokens, round by round, until few enough are left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.pruners.base import KeyOrValue, Selection, SingleStagePruner, VisualTokens, option
from foveate.select.likest import likest
from foveate.tensors import take_rows, to_device


@dataclass(frozen=True, kw_only=True)
class ToMe(SingleStagePruner):
    """Merge visual tokens by bipartite soft matching until k are left.

    In a round every other token is compared with those in between; each goes to the one most like it by cosine, and
    the pairs most alike merge into their average, weighted by size. As a round at most halves the tokens, there are
    several. Likeness is that of the keys of the layer before the cut, mean over heads; before layer 0 that of the
    hidden states. A merged token keeps the position of the one that the others went to.

    Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (arXiv 2210.09461). There a few tokens merge
    in each block of a vision encoder, and logits grow by the log of sizes; here it is done once before a decoder
    layer, and attention is left as it is.
    """

    name: ClassVar[str] = "tome"
    paper: ClassVar[str] = "Bolya et al., ICLR 2023, arXiv 2210.09461"
    url: ClassVar[str] = "https://arxiv.org/abs/2210.09461"
    summary: ClassVar[str] = "all, with like tokens merged into each other"
    keeps_exactly: ClassVar[bool] = True

    layer: int = option(0, "cut before this decoder layer, counted from 0; 0 is before the language model", at_least=0)

    def kv(self, layer: int) -> tuple[KeyOrValue, ...]:
        return ("keys",) if layer and not self.keeps_all else ()

    def choose(self, tokens: VisualTokens, k: Tensor) -> Selection:
        valid = tokens.valid
        keys = tokens.keys
        metric = tokens.features.to(torch.float32, copy=True) if keys is None else keys.mean(1, dtype=torch.float32)
        first = torch.argsort((~valid).to(torch.uint8), dim=-1, stable=True)
        group = match(metric, first, tokens.present, torch.minimum(k, tokens.present).clamp(min=1))
        place = torch.arange(valid.shape[1], device=valid.device)
        return Selection(valid & (group == place), group.masked_fill(~valid, -1))


def match(metric: Tensor, left: Tensor, number: Tensor, places: Tensor) -> Tensor:
    """For each token its column, or that of the token that it is part of in the end.

    Parameters
    ----------
    metric
        (B, N, C) float32; used up.
    left
        (B, N) long, columns, those of the tokens to match first.
    number, places
        (B,) long on the CPU, how many of these there are and how many shall be left.
    """
    batch, columns, _ = metric.shape
    device = metric.device
    group = torch.arange(columns, device=device).expand(batch, -1)
    size = torch.ones(batch, columns, 1, device=device)
    flat = torch.arange(0, batch * columns, columns, device=device)[:, None]
    while bool((number > places).any()):
        left = left[:, : int(number.max())]
        ones, others = left[:, ::2], left[:, 1::2]
        pairs = torch.minimum(number - places, (number + 1) // 2).clamp(min=0)
        most = int(pairs.max())
        there = torch.arange(left.shape[1], device=device) < to_device(number, device)[:, None]
        # 1. the pairs most alike
        best, to = likest(take_rows(metric, ones), take_rows(metric, others), there[:, 1::2])
        order = best.masked_fill(~there[:, ::2], -torch.inf).argsort(dim=-1, descending=True, stable=True)[:, :most]
        merges = torch.arange(most, device=device) < to_device(pairs, device)[:, None]
        source, target = ones.gather(1, order), others.gather(1, to.gather(1, order))
        # 2. their averages
        metric.mul_(size)
        for what in (metric, size):
            moved = take_rows(what, source).masked_fill_(~merges[..., None], 0)
            what.view(-1, what.shape[2]).index_add_(0, (target + flat).flatten(), moved.flatten(0, 1))
        metric.div_(size)
        parent = torch.arange(columns, device=device).repeat(batch, 1)
        parent.scatter_(1, source, torch.where(merges, target, source))
        group = parent.gather(1, group)
        # 3. what is left
        gone = torch.zeros_like(ones, dtype=torch.bool).scatter_(1, order, merges) | ~there[:, ::2]
        behind = torch.cat([gone, ~there[:, 1::2]], 1).to(torch.uint8).argsort(dim=-1, stable=True)
        left, number = torch.cat([ones, others], 1).gather(1, behind), number - pairs
    return group
