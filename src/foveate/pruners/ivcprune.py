"""IVC-Prune: tokens that mark places for rotary positions, and tokens whose values are like the question's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.errors import BudgetError
from foveate.pruners.base import KeyOrValue, Pruner, SingleStagePruner, VisualTokens, option
from foveate.pruners.budget import check_keep
from foveate.tensors import take_rows, to_device

SEEDS = 0.01  # of the visual tokens


@dataclass(frozen=True, kw_only=True)
class IVCPrune(SingleStagePruner):
    """Keep implicit coordinates, by positions alone, and the foreground, by values, in all layers' cache at once.

    Coordinates are the ⌊`coordinates` k⌉ tokens with the largest mean cosine over the channels of rotary positions,
    and as many with the largest mean sine. The likeness of two tokens is the softmax, over the visual tokens, of the
    product of their values in the layer before the cut, over the root of their width, mean over heads. The one
    visual token in a hundred that the text behind the image is most like, on average, are seeds; those that text and
    seeds together are most like fill the budget. The KV cache of earlier layers is cut to the same tokens.

    Source: Sun et al., "IVC-Prune", ICLR 2026 (arXiv 2602.03060); the rule of the authors' code for Qwen2.5-VL, in
    words of ours. For LLaVA their softmax is over the whole prompt, and the budget is not exact.

    Raises
    ------
    BudgetError
        When an option makes no sense.
    """

    name: ClassVar[str] = "ivcprune"
    paper: ClassVar[str] = "Sun et al., ICLR 2026, arXiv 2602.03060"
    url: ClassVar[str] = "https://arxiv.org/abs/2602.03060"
    summary: ClassVar[str] = "tokens at marked positions, and those whose values are like the question's"
    lowest_layer: ClassVar[int] = 1  # before layer 0 there are no values to read
    keeps_exactly: ClassVar[bool] = True

    keep: float | int = option(
        0.5, "share (0, 1] or count of visual tokens kept; 1.0 switches pruning off", check=check_keep
    )
    layer: int | None = option(  # type: ignore[assignment]
        None, "cut before this decoder layer, counted from 0, at least 1; none: half the depth", at_least=1
    )
    coordinates: float = option(
        0.2, "share of the budget for each of the two kinds of coordinates, in [0, 0.5]", at_least=0, at_most=0.5
    )
    compact_cache: bool = option(True, "also cut the KV cache of the layers before the cut to what survives it")

    def __post_init__(self) -> None:
        if self.layer is None:
            Pruner.__post_init__(self)
        else:
            super().__post_init__()

    def layers(self, depth: int) -> tuple[int, ...]:
        if self.layer is not None:
            return super().layers(depth)
        if depth < 2:
            raise BudgetError(f"ivcprune needs two decoder layers, the model has {depth}")
        return (depth // 2,)

    def kv(self, layer: int) -> tuple[KeyOrValue, ...]:
        return () if self.keeps_all else ("values",)

    def wants_rotary(self, layer: int) -> bool:
        return not self.keeps_all

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        if tokens.values is None or tokens.text_values is None or tokens.rotary is None:
            raise RuntimeError(
                "IVC-Prune was given no values or positions; the engine must honour kv and wants_rotary"
            )
        valid = tokens.valid
        k = torch.minimum(k, tokens.present)
        marks = torch.minimum((self.coordinates * k.double()).round().long(), k // 2)
        cosine, sine = (table.float().mean(-1) for table in tokens.rotary)
        keep = select.top_k(cosine, marks, valid) | select.top_k(sine, marks, valid)
        text = (tokens.text_values != 0).any(-1).any(1)
        of_text = _likeness(tokens.text_values, tokens.values, text, valid)
        number = (SEEDS * tokens.present.double()).round().long().clamp(min=1)
        number = torch.minimum(number, tokens.present)
        seed = select.top_k(of_text, number, valid)
        columns = torch.argsort((~seed).to(torch.uint8), dim=-1, stable=True)[:, : int(number.max())]
        seeds = torch.stack([take_rows(head, columns) for head in tokens.values.unbind(1)], 1)
        score = of_text + _likeness(seeds, tokens.values, seed.gather(1, columns), valid)
        places = to_device(k, valid.device)
        keep = keep | select.top_k(of_text, places - keep.sum(-1), seed & ~keep)
        return keep | select.top_k(score, places - keep.sum(-1), valid & ~keep)


def _likeness(rows: Tensor, values: Tensor, there: Tensor, valid: Tensor) -> Tensor:
    """(B, N) how alike visual values (B, G, N, E) are to the rows (B, G, R, E) that are there, summed over these."""
    total = values.new_zeros(valid.shape, dtype=torch.float32)
    for one, other in zip(rows.unbind(1), values.unbind(1), strict=True):  # head by head: (B, R, N) at a time
        product = torch.bmm(one.float(), other.float().mT) / values.shape[-1] ** 0.5
        share = product.masked_fill(~valid[:, None], -torch.inf).softmax(-1)
        total += share.masked_fill(~there[..., None], 0).sum(1)
    return total / values.shape[1]
