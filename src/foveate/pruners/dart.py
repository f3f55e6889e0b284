"""DART: keep what is least like a few pivots, so that no duplicates stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import KeyOrValue, SingleStagePruner, VisualTokens, option
from foveate.tensors import take_rows


@dataclass(frozen=True, kw_only=True)
class DART(SingleStagePruner):
    """Keep a few visual pivots, and for each visual and text pivot in turn the visual tokens least like it.

    Pivots are the tokens with the largest L1 norm of their keys, all heads together, in the layer before the cut; text
    pivots lie behind the image. Of the k tokens, each pivot's turn takes an equal number of those not yet taken, by
    the smallest cosine of the hidden states; the last one takes what is left of k. Pivots come by their place in the
    prompt, visual ones first.

    Source: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
    EMNLP 2025 (arXiv 2502.11494); written from a description of the authors' code. There the order of the pivots is
    that of a Python set, hidden states go through the model's final norm before they are compared, and the number kept
    is not exact.

    Raises
    ------
    BudgetError
        When an option makes no sense.
    """

    name: ClassVar[str] = "dart"
    paper: ClassVar[str] = "Wen et al., EMNLP 2025, arXiv 2502.11494"
    url: ClassVar[str] = "https://arxiv.org/abs/2502.11494"
    summary: ClassVar[str] = "what is least like a few pivots, so that no duplicates stay"
    lowest_layer: ClassVar[int] = 1  # before layer 0 there are no keys to read
    keeps_exactly: ClassVar[bool] = True

    visual_pivots: int = option(4, "visual tokens that all are compared with, and that stay; at least 1", at_least=1)
    text_pivots: int = option(4, "text tokens behind the image that all are compared with, at least 0", at_least=0)

    def kv(self, layer: int) -> tuple[KeyOrValue, ...]:
        return () if self.keeps_all else ("keys",)

    def wants_text(self, layer: int) -> bool:
        return not self.keeps_all

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        if tokens.keys is None or tokens.text_keys is None or tokens.text is None:
            raise RuntimeError("DART was given no keys or text; the engine must honour kv and wants_text")
        k = torch.minimum(k, tokens.present)
        keep = select.top_k(_size(tokens.keys), k.clamp(max=self.visual_pivots), tokens.valid)
        is_text = (tokens.text != 0).any(-1)
        of_text = select.top_k(_size(tokens.text_keys), self.text_pivots, is_text)
        pivots, there = (
            torch.cat(pair, 1)
            for pair in zip(
                _first(tokens.features, keep, self.visual_pivots),
                _first(tokens.text, of_text, self.text_pivots),
                strict=True,
            )
        )
        wanted = k.to(keep.device) - keep.sum(-1)
        number = there.sum(-1).clamp(min=1)
        unit = torch.nn.functional.normalize(tokens.features.float(), dim=-1)
        cosine = torch.bmm(torch.nn.functional.normalize(pivots.float(), dim=-1), unit.mT)
        turn = there.cumsum(-1)
        for step in range(there.shape[1]):
            equal = wanted // number
            share = torch.where(turn[:, step] == number, wanted - equal * (number - 1), equal)
            share = share.masked_fill(~there[:, step], 0)
            keep = keep | select.top_k(-cosine[:, step], share, tokens.valid & ~keep)
        return keep


def _size(keys: Tensor) -> Tensor:
    """(B, N) L1 norm of keys (B, G, N, E)."""
    return keys.float().abs().sum((1, 3))


def _first(states: Tensor, mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The states (B, P, D) where the mask (B, N) is True, in order, and which of them (B, P) are."""
    most = min(most, mask.shape[1])
    columns = torch.argsort((~mask).to(torch.uint8), dim=-1, stable=True)[:, :most]
    return take_rows(states, columns), mask.gather(1, columns)
