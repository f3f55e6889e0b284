"""MMTok: tokens that cover both the text and the image, greedily."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.tensors import take_rows, to_device

CROWD = 64  # columns whose gains are brought in date at a time
PICKS = 16  # from one crowd at most
ROWS = 256  # of the cosines at a time


@dataclass(frozen=True, kw_only=True)
class MMTok(EncoderPruner):
    """Take token by token the one that adds most to how well text and image are covered by those taken.

    Each text token shares itself out over the visual tokens, by a softmax of its cosines to their hidden states over
    `text_temperature`, and each visual token likewise by the encoder's outputs over `image_temperature`. A set covers
    a token as far as the best share in the set goes; coverage is the mean over text tokens plus `alpha` times the mean
    over visual tokens.

    Source: Dong et al., "MMTok", ICLR 2026 (arXiv 2508.18264); the rule of the authors' code, in words of ours. There
    the text is the question's words alone, less stop words, by a list; a method is shown no words, so here it is all
    text behind the image, and the report says so.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the encoder has no such block.
    """

    name: ClassVar[str] = "mmtok"
    paper: ClassVar[str] = "Dong et al., ICLR 2026, arXiv 2508.18264"
    url: ClassVar[str] = "https://arxiv.org/abs/2508.18264"
    summary: ClassVar[str] = "tokens that cover both the text and the image, greedily"

    alpha: float = option(
        0.5, "weight of covering the image against covering the text, in [0, 100]", at_least=0, at_most=100
    )
    text_temperature: float = option(0.02, "of text tokens' softmax, in (0, 100]", over=0, at_most=100)
    image_temperature: float = option(0.2, "of visual tokens' softmax, in (0, 100]", over=0, at_most=100)

    def notes(self, depth: int) -> tuple[str, ...]:
        note = "mmtok: the text is all that stands behind the image; its authors take the question without stop words"
        return () if self.keeps_all else (note,)

    def vision_attention(self, depth: int) -> tuple[int, ...]:
        return ()

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return () if self.keeps_all else (self.at(depth),)

    def wants_text(self, layer: int) -> bool:
        return not self.keeps_all

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        if tokens.text is None:
            raise RuntimeError("MMTok was given no text; the engine must honour wants_text")
        valid = tokens.valid
        text, seen = _unit(tokens.text), _unit(tokens.features)
        there = (tokens.text != 0).any(-1)
        given = (torch.bmm(text, seen.mT) / self.text_temperature).masked_fill(~valid[:, None], -torch.inf).softmax(-1)
        given = given.nan_to_num() * (there / there.sum(-1, keepdim=True).clamp(min=1))[..., None]
        unit = _unit(tokens.vision[0])
        logits = [self._logits(part, unit).masked_fill(~valid[:, None], -torch.inf) for part in unit.split(ROWS, 1)]
        whole = torch.cat([one.logsumexp(-1) for one in logits], 1)
        share = valid * (self.alpha / valid.sum(-1, keepdim=True).clamp(min=1))

        def column(index: Tensor) -> Tensor:
            """(B, c, T + N) what the tokens at `index` (B, c) cover of each text token and each visual one."""
            image = (self._logits(take_rows(unit, index), unit) - whole[:, None]).exp().nan_to_num() * share[:, None]
            return torch.cat([take_rows(given.mT, index), image], -1)

        return covering(column, torch.minimum(k, tokens.present), valid)

    def _logits(self, rows: Tensor, unit: Tensor) -> Tensor:
        return torch.bmm(rows, unit.mT) / self.image_temperature


def _unit(states: Tensor) -> Tensor:
    return torch.nn.functional.normalize(states.float(), dim=-1)


def covering(column: Callable[[Tensor], Tensor], k: Tensor, valid: Tensor) -> Tensor:
    """The tokens (B, N) bool that the greedy rule takes, of equal ones the first.

    What a token adds only ever falls, so an earlier gain is a bound. The columns of a small crowd, those with the
    highest bounds, are made anew, and as long as its best exceeds all bounds outside that is the next pick.

    Parameters
    ----------
    column
        Gives for tokens (B, c) how far each covers what is to be covered, (B, c, R), at least 0.
    k
        (B,) long on the CPU, at most the valid tokens.
    """
    everyone = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
    parts = [column(part).sum(-1) for part in everyone.split(ROWS, 1)]
    bound = torch.cat(parts, 1).masked_fill(~valid, -torch.inf)
    left, keep = to_device(k, valid.device)[:, None].clone(), torch.zeros_like(valid)
    cover = bound.new_zeros(len(bound), 1, 1)
    crowded = min(CROWD, valid.shape[1])
    while bool((left > 0).any()):  # one look at the device for a crowd
        # 1. the crowd, and the best of what is not in it
        crowd, first = bound.topk(crowded).indices, bound.argmax(-1, keepdim=True)
        crowd[:, -1:] = torch.where((crowd == first).any(-1, keepdim=True), crowd[:, -1:], first)
        crowd = crowd.sort(dim=-1).values
        outside = bound.scatter(1, crowd, -torch.inf)
        rival = outside.argmax(-1, keepdim=True)
        limit = outside.gather(1, rival)
        covers, gone = column(crowd), bound.gather(1, crowd) == -torch.inf
        # 2. picks from it
        for _ in range(PICKS):
            worth = (covers - cover).clamp(min=0).sum(-1).masked_fill(gone, -torch.inf)
            best, at = worth.max(-1, keepdim=True).values, worth.argmax(-1, keepdim=True)
            pick = crowd.gather(1, at)
            taken = ((best > limit) | (best == limit) & (pick < rival)) & (left > 0) & (best > -torch.inf)
            keep = keep.scatter(1, pick, keep.gather(1, pick) | taken)
            cover = torch.where(taken[..., None], torch.maximum(cover, take_rows(covers, at)), cover)
            gone = gone.scatter(1, at, gone.gather(1, at) | taken)
            left = left - taken.long()
        bound = bound.scatter(1, crowd, (covers - cover).clamp(min=0).sum(-1).masked_fill(gone, -torch.inf))
    return keep
