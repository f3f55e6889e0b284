"""AnchorPrune: the tokens most relevant to the question, then important ones that are unlike all kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.select.cosine import UnitRows, unit_rows
from foveate.select.diversity import WORTH
from foveate.select.lazy_greedy import Capped, Index
from foveate.select.likest import likest
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
        relevance, _ = likest(tokens.features, tokens.text, (tokens.text != 0).any(-1))
        keep, near = self._anchor(tokens.features, relevance, k, tokens.valid)
        importance = tokens.class_received[0].nan_to_num(0, 0, 0)
        return expand(tokens.features, importance, near, keep, k, tokens.valid)

    def _anchor(self, features: Tensor, relevance: Tensor, k: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The anchor (B, N) bool, and the cosine (B, N) of each token to the nearest of it, at least 0."""
        order = descending(relevance, valid)
        place = torch.arange(order.shape[1], device=order.device)
        first = _first(k)
        most = torch.maximum(k // 2, first)
        first, widest = first.to(order.device)[:, None], (int(first.max()), int(most.max()))
        inside = place < first
        real = valid.gather(1, order)
        nearest = _nearest(features, order[:, : widest[0]], (inside & real)[:, : widest[0]])
        novel = (1 - nearest.gather(1, order) > self.novelty) & ~inside
        before = novel.cumsum(-1) - novel.long()  # how many novel ones came earlier
        inside |= (place < most.to(order.device)[:, None]) & (before < NOVEL)
        anchor = torch.zeros_like(valid).scatter(1, order, inside) & valid
        near = _nearest(features, order[:, : widest[1]], (inside & real)[:, : widest[1]])
        return anchor, near.clamp(min=0)


def _first(k: Tensor) -> Tensor:
    """(B,) how many tokens the anchor begins with."""
    return (LEAST * k.double()).floor().long().clamp(min=1)


def _nearest(features: Tensor, columns: Tensor, there: Tensor) -> Tensor:
    """(B, N) largest cosine to one of the tokens in `columns` (B, C) that are `there`; -1 where none is."""
    nearest, _ = likest(features, take_rows(features, columns), there)
    return nearest.masked_fill(nearest == -torch.inf, -1)


def expand(features: Tensor, importance: Tensor, near: Tensor, keep: Tensor, k: Tensor, valid: Tensor) -> Tensor:
    """(B, N) bool, `keep` and, up to k (B,) tokens, each time the one with the largest importance · (1 - near).

    Parameters
    ----------
    importance
        (B, N) at least 0.
    near
        (B, N) cosine to the nearest token kept.
    """
    missing = k.to(keep.device) - keep.sum(-1)
    steps = int((k - _first(k)).max())
    if keep.device.type == "cpu" and features.numel() * steps >= WORTH:
        keep = keep.clone()
        gain = (importance * (1 - near)).masked_fill(keep | ~valid, -torch.inf)
        for row, most in enumerate(missing.tolist()):
            keep[row, Expansion(UnitRows(features[row]), gain[row], most, importance[row]).run()] = True
        return keep
    unit = unit_rows(features.float())
    for step in range(steps):
        score = importance * (1 - near)
        pick = score.masked_fill(keep | ~valid, -torch.inf).argmax(-1, keepdim=True)
        keep = keep.scatter(1, pick, keep.gather(1, pick) | (step < missing)[:, None])
        near = torch.maximum(near, torch.bmm(unit, take_rows(unit, pick).mT).squeeze(-1))
    return keep


class Expansion(Capped):
    """The same on a CPU: a token's gain only falls, as importance is at least 0."""

    def __init__(self, rows: UnitRows, gain: Tensor, most: int, importance: Tensor) -> None:
        super().__init__(rows, gain, most)
        self.importance = importance

    def beside(self, products: Tensor, index: Index) -> Tensor:
        return self.importance[torch.from_numpy(index)] * products.neg_().add_(1)
