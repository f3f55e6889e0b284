"""VisionZip: what the class token attends to, and a summary of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import Selection, VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.select.likest import likest
from foveate.tensors import take_rows, to_device


@dataclass(frozen=True, kw_only=True)
class VisionZip(EncoderPruner):
    """Keep the dominant tokens, which the class token attends to most, and contextual ones, into which the rest merge.

    Of the k tokens ⌊`contextual` k⌉ are contextual: every ⌊M / c⌋-th of the M that are not dominant. Each other token
    goes to the contextual one most alike, which becomes itself plus the mean of what goes to it. With `merge=False` it
    stays itself. Where the encoder has no class token, the mean over the queries of all patches stands in, and the
    report says so.

    Source: Yang et al., "VisionZip", CVPR 2025 (arXiv 2412.04467); written from a description of the authors' code.
    There tokens are alike by the keys of the block's attention and merge before the projector, and LLaVA's class token
    stays as one more token. Here they are alike by the block's output, and merge where they enter the language model.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the encoder has no such block.
    """

    name: ClassVar[str] = "visionzip"
    paper: ClassVar[str] = "Yang et al., CVPR 2025, arXiv 2412.04467"
    url: ClassVar[str] = "https://arxiv.org/abs/2412.04467"
    summary: ClassVar[str] = "what the vision encoder's class token attends to; the rest merged into a few"
    by_class_token: ClassVar[bool] = True

    contextual: float = option(
        10 / 64, "share of the budget for tokens that the rest merge into, in [0, 1)", at_least=0, under=1
    )
    merge: bool = option(True, "merge the rest into the contextual tokens; else it is dropped")

    def notes(self, depth: int) -> tuple[str, ...]:
        note = "visionzip: tokens merge by the vision block's output, not its keys, and behind the projector"
        return (note,) if self.merge and self.contextual and not self.keeps_all else ()

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return self.vision_attention(depth)

    def choose(self, tokens: VisualTokens, k: Tensor) -> Selection:
        k, device = torch.minimum(k, tokens.present), tokens.valid.device
        contextual = (self.contextual * k.double()).round().long()
        keep = select.top_k(tokens.class_received[0], k - contextual, tokens.valid)
        rest, most = tokens.valid & ~keep, int(contextual.max())
        every = (tokens.present - k + contextual) // contextual.clamp(min=1)
        number, every = (to_device(one, device)[:, None] for one in (contextual, every))
        rank = rest.cumsum(-1) - 1
        target = rest & (rank % every.clamp(min=1) == 0) & (rank < number * every)
        keep, rest = keep | target, rest & ~target
        if not self.merge or not most:
            return Selection(keep, how="add")
        columns = torch.argsort((~target).to(torch.uint8), dim=-1, stable=True)[:, :most]
        there = torch.arange(most, device=device) < number
        _, place = likest(tokens.vision[0], take_rows(tokens.vision[0], columns), there)
        rest &= number > 0
        size = torch.zeros_like(columns).scatter_add_(1, place, rest.long()).gather(1, place)
        into, weight = columns.gather(1, place), size.clamp(min=1).reciprocal()
        return Selection(keep, into.masked_fill(~rest, -1), weight.masked_fill(~rest, 0), "add")
