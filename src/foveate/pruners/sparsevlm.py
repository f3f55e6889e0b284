"""SparseVLM: in three stages, what the text tokens that are most like the image attend to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from foveate import select
from foveate.errors import BudgetError
from foveate.pruners.base import PromptRows, Pruner, Selection, VisualTokens, depth_of, option
from foveate.pruners.btp.stages import BTPStage, mean_tokens, scale_to
from foveate.pruners.budget import check_share, tokens_to_keep
from foveate.select.density import density_centres

PLACES = (3 / 32, 7 / 32, 16 / 32)  # of the depth: behind layers 2, 6 and 15 of LLaVA-1.5-7B's 32
COUNTS = {  # of LLaVA-1.5's 576 visual tokens behind each stage, for a mean called that, by version
    2: {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
    1: {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
}
RECYCLED = 0.3  # of the tokens that leave are summarised,
CLUSTER = 10  # in one token for so many
LEAST = 1e-3  # of what rotary positions alone give, by which attention is divided


@dataclass(frozen=True, kw_only=True)
class SparseVLM(Pruner):
    """Keep at each stage what the raters attend to, the text tokens that stand out when the image looks at the text.

    Raters are chosen once, where the prompt enters the language model: of the text behind the image the tokens to
    which visual tokens, by a softmax over that text of their products, give more than the mean. A token's score is the
    attention of the raters in the layer before the cut, mean over raters and heads. In version 2 it is divided by what
    queries and keys of ones would give at these positions, which undoes the decay of rotary positions, and only the
    `heads` with the largest sum count. In version 1 the best of the tokens that leave are clustered by the density of
    their hidden states, and each cluster's mean takes a place in the budget.

    Source: Zhang et al., "SparseVLM", ICML 2025 (arXiv 2410.04417), and its second version; the rule of the authors'
    code, in words of ours. There clusters' means come on top of the budget, behind the survivors, and positions are
    numbered anew; here a mean's position is that of its cluster's centre. Stages at the same shares of other depths,
    and the scaling to `keep`, are ours.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when `keep` cannot be reached or the model has too few layers.
    """

    name: ClassVar[str] = "sparsevlm"
    paper: ClassVar[str] = "Zhang et al., ICML 2025, arXiv 2410.04417"
    url: ClassVar[str] = "https://arxiv.org/abs/2410.04417"
    summary: ClassVar[str] = "in three stages, what the text tokens that are most like the image attend to"
    keep_is_mean: ClassVar[bool] = True

    keep: float | None = option(
        None,
        "mean share of visual tokens per decoder layer, by scaling all stages; none: as they are; 1.0: off",
        check=check_share,
    )
    schedule: Literal[192, 128, 96, 64] = option(192, "the published stages, by the mean they are made for, of 576")
    version: Literal[2, 1] = option(2, "2: attention corrected, of some heads; 1: plain, and what leaves is recycled")
    heads: int | None = option(14, "heads that count in version 2, at least 1; none: all", at_least=1)
    depth: int | None = option(None, "decoder layers of the model; worked out on attaching", at_least=1)

    def resolved(self, config: Any) -> SparseVLM:
        made = dataclasses.replace(self, depth=depth_of(config))
        made.stages(depth_of(config))
        return made

    def with_mean(self, share: float, config: Any) -> SparseVLM:
        made = dataclasses.replace(self, keep=share)
        made.stages(depth_of(config))
        return made

    def scaled(self, factor: float, config: Any) -> SparseVLM:
        depth = depth_of(config)
        stages = dataclasses.replace(self, keep=None).stages(depth) if self.keep == 1.0 else self.stages(depth)
        kept = tuple(dataclasses.replace(one, keep=min(1.0, factor * one.keep)) for one in stages)
        return self.with_mean(mean_tokens(kept, depth), config)

    def stages(self, depth: int) -> tuple[BTPStage, ...]:
        """The stages in a model of `depth` decoder layers, of which layer and keep count.

        Raises
        ------
        BudgetError
            When there are too few layers, or no scaling gives the mean.
        """
        layers: list[int] = []
        for place in PLACES:
            layers.append(max(1, round(place * depth), *(one + 1 for one in layers[-1:])))
        if layers[-1] >= depth:
            raise BudgetError(f"sparsevlm needs a model of more decoder layers than {depth}")
        counts = COUNTS[self.version][self.schedule]
        stages = tuple(BTPStage(layer, count / 576) for layer, count in zip(layers, counts, strict=True))
        try:
            return stages if self.keep in (None, 1.0) else scale_to(stages, self.keep, depth)
        except BudgetError as error:
            raise BudgetError(str(error).replace("btp", "sparsevlm", 1)) from None

    def layers(self, depth: int) -> tuple[int, ...]:
        return (0, *(stage.layer for stage in self.stages(depth)))

    def kept(self, layer: int, dense: Tensor, present: Tensor) -> Tensor:
        share = self._share(layer)
        return present if share == 1.0 else torch.minimum(tokens_to_keep(share, dense), present)

    def wants_text(self, layer: int) -> bool:
        return layer == 0 and self.keep != 1.0

    def wants_rotary(self, layer: int) -> bool:
        return self.version == 2 and self._share(layer) < 1

    def attention_rows(self, layer: int, rows: PromptRows) -> Tensor | None:
        return rows.text if self._share(layer) < 1 else None

    def select(self, tokens: VisualTokens) -> Tensor | Selection:
        if self.keep == 1.0:
            return tokens.valid
        if not tokens.layer:
            return Selection(tokens.valid, carry=raters(tokens))
        k = self.kept(tokens.layer, tokens.dense, tokens.present)
        if self._share(tokens.layer) == 1.0:
            return tokens.valid
        score = self._score(tokens)
        if self.version == 2:
            return select.top_k(score, k, tokens.valid)
        leave = tokens.present - k
        recycled = ((RECYCLED * leave.double()).floor() + 1).long() * (leave > 0)
        clusters = torch.minimum((recycled // CLUSTER + 1) * (leave > 0), k // 2)
        keep = select.top_k(score, k - clusters, tokens.valid)
        among = recycled + clusters
        rest = select.top_k(score, among, tokens.valid & ~keep)
        centre, into = density_centres(tokens.features, clusters, rest, int(among.max()))
        return Selection(keep | centre, into)

    def _score(self, tokens: VisualTokens) -> Tensor:
        """(B, N) attention of the raters, mean over them and over the heads that count."""
        if tokens.attention is None or tokens.carried is None:
            raise RuntimeError("SparseVLM was given no attention; the engine must honour attention_rows and carry")
        attention, rater = tokens.attention, tokens.carried.to(tokens.attention)
        if self.version == 2:
            if tokens.rotary is None or tokens.text_rotary is None:
                raise RuntimeError("SparseVLM was given no rotary positions; the engine must honour wants_rotary")
            attention = attention / decay(tokens.text_rotary, tokens.rotary)[:, None]
        of_heads = torch.einsum("bhrn,br->bhn", attention, rater) / rater.sum(-1).clamp(min=1)[:, None, None]
        of_heads = of_heads.masked_fill(~tokens.valid[:, None], 0)
        if self.version == 1 or self.heads is None or self.heads >= of_heads.shape[1]:
            return of_heads.mean(1)
        best = of_heads.sum(-1).topk(self.heads, dim=-1).indices
        return of_heads.gather(1, best[..., None].expand(-1, -1, of_heads.shape[2])).mean(1)

    def _share(self, layer: int) -> float:
        if self.depth is None:
            raise RuntimeError("SparseVLM's stages depend on the model: ask resolved(config) first")
        if self.keep == 1.0:
            return 1.0
        return next((stage.keep for stage in self.stages(self.depth) if stage.layer == layer), 1.0)


def raters(tokens: VisualTokens) -> Tensor:
    """(B, T) bool, the text tokens behind the image that it is most like; all of them where none stands out."""
    if tokens.text is None:
        raise RuntimeError("SparseVLM was given no text; the engine must honour wants_text")
    there = (tokens.text != 0).any(-1)
    product = torch.bmm(tokens.features.float(), tokens.text.float().mT).masked_fill(~there[:, None], -torch.inf)
    given = product.softmax(-1).nan_to_num()  # without any text there is nothing to give
    mean = (given * tokens.valid[..., None]).sum(1) / tokens.valid.sum(-1).clamp(min=1)[:, None]
    above = there & (mean > 1 / there.sum(-1, keepdim=True).clamp(min=1))
    return torch.where(above.any(-1, keepdim=True), above, there)


def decay(query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """(B, T, N) product of a query and a key of ones at these rotary positions, over the root of their width."""
    product = sum(torch.bmm(one.float(), other.float().mT) for one, other in zip(query, key, strict=True))
    return (product / query[0].shape[-1] ** 0.5).clamp(min=LEAST)
