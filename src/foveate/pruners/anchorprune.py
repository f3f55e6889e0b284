"""AnchorPrune: the tokens most relevant to the question, then important ones that are unlike all kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.tensors import descending, take_rows

LEAST = 5 / 32  # of the budget, in the anchor in any case: 5, 10, 20 of 32, 64, 128
NOVEL = 3  # tokens unlike the first ones end the anchor


@dataclass(frozen=True, kw_only=True)
class AnchorPrune(EncoderPruner):
    """Keep an anchor of relevant tokens, and expand it by tokens that are important and unlike all that are kept.

    Relevance is the largest cosine of a token to any text token behind the image. The anchor begins with the ⌊5k / 32⌋
    most relevant tokens and goes on, up to ⌊k / 2⌋, until it has three that are farther than `novelty` from all of
    those, in 1 - cosine. Then the token with the largest product of importance and distance to the nearest token kept
    is taken, until there are k. Importance is the attention of the vision encoder's class token, where there is none
    that of all patches, as in the paper.

    Source: "AnchorPrune", ECCV 2026 (arXiv 2607.07033); written from a description of the authors' code, as it is for
    Qwen. For LLaVA relevance is minus the cosine of CLIP's embeddings of patch and question there, which the models of
    transformers do not hold.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the encoder has no such block.
    """

    name: ClassVar[str] = "anchorprune"
    paper: ClassVar[str] = "ECCV 2026, arXiv 2607.07033"
    url: ClassVar[str] = "https://arxiv.org/abs/2607.07033"
    summary: ClassVar[str] = "the tokens most like the question, then important ones unlike all kept"

    novelty: float = option(
        0.2, "1 - cosine above which a token is unlike the anchor's first ones, in [0, 2]", at_least=0, at_most=2
    )

    def notes(self, depth: int) -> tuple[str, ...]:
        note = "anchorprune: relevance by the text tokens of the language model, as there is no CLIP text tower"
        return () if self.keeps_all else (note,)

    def wants_text(self, layer: int) -> bool:
        return not self.keeps_all

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        if tokens.text is None:
            raise RuntimeError("AnchorPrune was given no text; the engine must honour wants_text")
        k = torch.minimum(k, tokens.present)
        steps = int((k - _first(k)).max())
        k = k.to(tokens.valid.device)
        unit = torch.nn.functional.normalize(tokens.features.float(), dim=-1)
        text = torch.nn.functional.normalize(tokens.text.float(), dim=-1)
        cosine = torch.bmm(unit, text.mT).masked_fill(~(tokens.text != 0).any(-1)[:, None], -torch.inf)
        relevance = cosine.amax(-1) if cosine.shape[-1] else torch.zeros_like(unit[..., 0])
        keep, near = self._anchor(unit, relevance, k, tokens.valid)
        count = keep.sum(-1)
        for step in range(steps):
            score = tokens.class_received[0] * (1 - near)
            pick = score.masked_fill(keep | ~tokens.valid, -torch.inf).argmax(-1, keepdim=True)
            wanted = (count + step < k)[:, None]
            keep = keep.scatter(1, pick, keep.gather(1, pick) | wanted)
            near = torch.maximum(near, torch.bmm(unit, take_rows(unit, pick).mT).squeeze(-1))
        return keep

    def _anchor(self, unit: Tensor, relevance: Tensor, k: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The anchor (B, N) bool, and the cosine (B, N) of each token to the nearest of it, at least 0."""
        order = descending(relevance, valid)
        place = torch.arange(order.shape[1], device=order.device)
        first = _first(k)[:, None]
        most = torch.maximum(k[:, None] // 2, first)
        least = torch.zeros_like(valid).scatter(1, order, place < first) & valid
        nearest = _nearest(unit, least)
        novel = (1 - nearest.gather(1, order) > self.novelty) & (place >= first)
        before = novel.cumsum(-1) - novel.long()  # how many novel ones came earlier
        inside = (place < most) & ((before < NOVEL) | (place < first))
        anchor = torch.zeros_like(valid).scatter(1, order, inside) & valid
        return anchor, _nearest(unit, anchor).clamp(min=0)


def _first(k: Tensor) -> Tensor:
    """(B,) how many tokens the anchor begins with."""
    return (LEAST * k.double()).floor().long().clamp(min=1)


def _nearest(unit: Tensor, kept: Tensor) -> Tensor:
    """(B, N) largest cosine to a token kept; -1 where none is."""
    most = int(kept.sum(-1).max())
    columns = torch.argsort((~kept).to(torch.uint8), dim=-1, stable=True)[:, :most]
    cosine = torch.bmm(unit, take_rows(unit, columns).mT)
    return cosine.masked_fill(~kept.gather(1, columns)[:, None], -1).amax(-1)
