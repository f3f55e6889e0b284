"""MMTok: tokens that cover both the text and the image, greedily."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.tensors import take_rows

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

        return select.covering(column, lambda added, _: added, torch.minimum(k, tokens.present), valid)

    def _logits(self, rows: Tensor, unit: Tensor) -> Tensor:
        return torch.bmm(rows, unit.mT) / self.image_temperature


def _unit(states: Tensor) -> Tensor:
    return torch.nn.functional.normalize(states.float(), dim=-1)
