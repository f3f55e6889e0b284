"""HiPrune: anchors and their neighbours from a middle block of the vision encoder, the rest from its last one."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.tensors import to_device


@dataclass(frozen=True, kw_only=True)
class HiPrune(EncoderPruner):
    """Keep anchors, their four neighbours and registers, by the attention that patches receive in the vision encoder.

    Anchors are the k α / 5 tokens, rounded, that receive the most from all patches in a middle block, the object
    block; registers, up to exactly k, those that receive the most of the others in the block whose output is used. A
    neighbour beyond a row's end is the next row's, one beyond the image the nearest token of the image.

    Source: Liu et al., "HiPrune", ACL 2026 (arXiv 2508.00553); written from a description of the authors' code, in
    which the object block is the 9th of CLIP-L's 24 and the 16th of the 32 of Qwen2.5-VL's encoder.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the encoder has no such block.
    """

    name: ClassVar[str] = "hiprune"
    paper: ClassVar[str] = "Liu et al., ACL 2026, arXiv 2508.00553"
    url: ClassVar[str] = "https://arxiv.org/abs/2508.00553"
    summary: ClassVar[str] = (
        "what a middle block of the vision encoder attends to, its neighbours, and the last block's"
    )
    uses_grids: ClassVar[bool] = True
    needs_all_tokens: ClassVar[bool] = True

    alpha: float = option(
        0.1, "share of the budget for anchors with their neighbours, in [0, 1]", at_least=0, at_most=1
    )
    depth: float | None = option(
        None,
        "where the object block is, as a share of the encoder's blocks; none: 3/8 for CLIP, else 1/2",
        at_least=0,
        at_most=1,
    )

    def resolved(self, config: Any) -> HiPrune:
        made = super().resolved(config)
        if made.depth is not None:
            return made
        clip = getattr(getattr(config, "vision_config", None), "model_type", "") == "clip_vision_model"
        return dataclasses.replace(made, depth=3 / 8 if clip else 1 / 2)

    def vision_attention(self, depth: int) -> tuple[int, ...]:
        share = 1 / 2 if self.depth is None else self.depth
        return () if self.keeps_all else (max(round(share * depth) - 1, 0), self.at(depth))

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        objects, last = tokens.received
        number = torch.minimum((k.double() * self.alpha / 5).round().long(), k // 5)  # so that all neighbours fit
        anchors = select.top_k(objects, number, tokens.valid & (tokens.grid >= 0))
        first = anchors | _neighbours(anchors, tokens)
        return first | select.top_k(last, k.to(first.device) - first.sum(-1), tokens.valid & ~first)


def _neighbours(anchors: Tensor, tokens: VisualTokens) -> Tensor:
    """(B, N) bool, the tokens before, behind, above and below the anchors on their grids."""
    most = max(1, *map(len, tokens.grids))
    table = torch.ones(4, len(tokens.grids), most, dtype=torch.long)  # start, width, separators in a row, cells
    for sample, grids in enumerate(tokens.grids):
        starts = itertools.accumulate((grid.length for grid in grids), initial=0)
        for place, (grid, begin) in enumerate(zip(grids, starts, strict=False)):
            table[:, sample, place] = torch.tensor([begin, grid.width, grid.row_ends, grid.cells])
    number = tokens.grid.clamp(min=0)
    start, width, ends, cells = (one.gather(1, number) for one in to_device(table, number.device))
    cell = tokens.row * width + tokens.column
    found = torch.zeros_like(tokens.position)
    for step in (-torch.ones_like(width), torch.ones_like(width), -width, width):
        near = torch.minimum((cell + step).clamp(min=0), cells - 1)
        column = (start + near // width * (width + ends) + near % width).masked_fill(~anchors, 0)
        found.scatter_add_(1, column, anchors.long())
    return (found > 0) & tokens.valid
