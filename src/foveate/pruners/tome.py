"""ToMe: merge pairs of like tokens, round by round, until few enough are left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.pruners.base import KeyOrValue, Selection, SingleStagePruner, VisualTokens, option


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
        metric = (tokens.features if tokens.keys is None else tokens.keys.float().mean(1)).float()
        keep, into = tokens.valid.clone(), torch.full_like(tokens.position, -1)
        for row, places in enumerate(torch.minimum(k, tokens.present).tolist()):
            columns = tokens.valid[row].nonzero()[:, 0]
            group = match(metric[row, columns], places)
            keep[row, columns] = group == torch.arange(len(columns), device=group.device)
            into[row, columns] = columns[group]
        return Selection(keep, into)


def match(metric: Tensor, places: int) -> Tensor:
    """For each of (M, C) tokens the place of the one that it is part of in the end, of which there are `places`."""
    number = len(metric)
    group = torch.arange(number, device=metric.device)
    size, left = torch.ones(number, 1, device=metric.device), group
    while len(left) > max(places, 1):
        ones, others = left[::2], left[1::2]
        unit = torch.nn.functional.normalize(metric, dim=-1)
        best, to = (unit[ones] @ unit[others].T).max(-1)
        order = best.argsort(descending=True, stable=True)
        count = min(len(left) - max(places, 1), len(ones))
        merged, stay = order[:count], order[count:].sort().values
        source, target = ones[merged], others[to[merged]]
        metric = (metric * size).index_add(0, target, metric[source] * size[source])
        size = size.index_add(0, target, size[source])
        metric = metric / size
        parent = torch.arange(number, device=group.device).index_copy(0, source, target)
        group = parent[group]
        left = torch.cat([ones[stay], others])
    return group
