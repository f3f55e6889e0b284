"""VisPruner: what the class token attends to, and of the rest what is left when duplicates are taken out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.tensors import descending

ROUND = 8  # duplicates taken out at a time
LISTED = 32  # tokens most like a token that are remembered
ROWS = 256  # tokens that lists are made for at a time


@dataclass(frozen=True, kw_only=True)
class VisPruner(EncoderPruner):
    """Keep the visual tokens that the class token attends to most, and of the others those with no duplicate.

    ⌊`important` k⌋ places go to the most attended tokens. The others, by falling attention, lose duplicates in rounds:
    of the tokens at even places the 8 most alike to one at an odd place leave, and the odd ones then come behind what
    is left of the even ones, until all places are taken. Alike is the cosine of the block's outputs, before the
    projector. Where the encoder has no class token, the mean over the queries of all patches stands in, and the report
    says so.

    Source: Zhang et al., "Beyond Text-Visual Attention", ICCV 2025 (arXiv 2412.01818); written from a description of
    the authors' code.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the encoder has no such block.
    """

    name: ClassVar[str] = "vispruner"
    paper: ClassVar[str] = "Zhang et al., ICCV 2025, arXiv 2412.01818"
    url: ClassVar[str] = "https://arxiv.org/abs/2412.01818"
    summary: ClassVar[str] = "what the vision encoder's class token attends to, and of the rest no duplicates"
    by_class_token: ClassVar[bool] = True

    important: float = option(
        0.5, "share of the budget for the most attended tokens, in [0, 1]", at_least=0, at_most=1
    )

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return self.vision_attention(depth)

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        k = torch.minimum(k, tokens.present)
        attended = (self.important * k.double() + 1e-9).floor().long()
        keep = select.top_k(tokens.class_received[0], attended, tokens.valid)
        order = descending(tokens.class_received[0], tokens.valid & ~keep)
        others = tokens.present - attended
        for row, (number, places) in enumerate(zip(others.tolist(), (k - attended).tolist(), strict=True)):
            rest = order[row, :number]
            unit = torch.nn.functional.normalize(tokens.vision[0][row, rest].float(), dim=-1)
            keep[row, rest[without_duplicates(unit, places)]] = True
        return keep


def without_duplicates(unit: Tensor, places: int) -> Tensor:
    """Which `places` of the unit vectors (M, C), the most attended first, are left.

    Each token has a list of those most like it. The first of them at an odd place gives the cosine that counts; where
    none is, the last one's is a bound, and the token gets a new list once its bound is among the highest.
    """
    left = torch.arange(len(unit) if places else 0, device=unit.device)
    if len(left) <= places:
        return left
    lists = [_most_alike(unit, part, left) for part in left.split(ROWS)]
    cosines, likest = (torch.cat(parts) for parts in zip(*lists, strict=True))
    while len(left) > places:
        even, odd = left[::2], left[1::2]
        leave = min(ROUND, len(left) - places, len(even))
        is_odd = torch.zeros(len(unit), dtype=torch.bool, device=unit.device).index_fill_(0, odd, True)
        known = is_odd[likest[even]]
        first = known.to(torch.uint8).argmax(-1, keepdim=True)
        sure = known.gather(1, first)[:, 0]
        alike = torch.where(sure, cosines[even].gather(1, first)[:, 0], cosines[even, -1])
        order = alike.argsort(descending=True, stable=True)
        while not bool(sure[order[:leave]].all()):  # one read from the device a round
            stale = order[~sure[order]][: ROWS // 4]
            cosines[even[stale]], likest[even[stale]] = _most_alike(unit, even[stale], left)
            alike[stale], sure[stale] = (unit[even[stale]] @ unit[odd].T).amax(-1), True
            order = alike.argsort(descending=True, stable=True)
        left = torch.cat([even[order[leave:].sort().values], odd])
    return left


def _most_alike(unit: Tensor, some: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines (n, LISTED) of some tokens (n,) to those among `left` most like them, falling, and which these are."""
    found = (unit[some] @ unit[left].T).topk(min(LISTED, len(left)), dim=-1)
    missing = 0, LISTED - found.values.shape[1]
    return torch.nn.functional.pad(found.values, missing, value=-torch.inf), torch.nn.functional.pad(
        left[found.indices], missing
    )
