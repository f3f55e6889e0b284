"""HoloV: each part of the image gets places by how attended it is, so that none is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.tensors import to_device


@dataclass(frozen=True, kw_only=True)
class HoloV(EncoderPruner):
    """Share the budget among consecutive parts of the tokens, and keep in each what the class token attends to most.

    A part gets ⌊k · share⌋ places, its share that of its mean attention; places left go one each to the largest
    shares. Where the encoder has no class token, the mean over the queries of all patches stands in, and the report
    says so.

    Source: Zou et al., "HoloV", NeurIPS 2025 (arXiv 2510.02912); written from a description of the authors' code. A
    token's score there is 1000 a + α σ² · (mean of 1000 a) / (mean of σ²), with a its attention, σ² the variance of
    its cosines to its part, and the means over the part; a part counts by the mean of its scores. That mean is
    (1 + α) · 1000 times the mean of a, whatever σ² is: so neither α nor the cosines are needed. Places that a part
    has no tokens for are filled with zeros there; here they go to other parts, largest share first.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the encoder has no such block.
    """

    name: ClassVar[str] = "holov"
    paper: ClassVar[str] = "Zou et al., NeurIPS 2025, arXiv 2510.02912"
    url: ClassVar[str] = "https://arxiv.org/abs/2510.02912"
    summary: ClassVar[str] = "what the vision encoder's class token attends to, shared among all parts of the image"
    by_class_token: ClassVar[bool] = True

    parts: int = option(16, "parts that the tokens are cut into, as even as can be", at_least=1)

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        # a number for each token, and shares of whole places: on the host, which waits for the device once
        received, valid = tokens.class_received[0].cpu(), tokens.valid.cpu()
        keep = torch.zeros_like(valid)
        for row, budget in enumerate(torch.minimum(k, tokens.present).tolist()):
            columns = valid[row].nonzero()[:, 0]
            attention = received[row, columns]
            parts = attention.double().tensor_split(min(self.parts, max(len(columns), 1)))
            sizes = [len(one) for one in parts]
            places = share_out(torch.stack([one.mean() for one in parts]).tolist(), sizes, budget)
            part = torch.arange(len(parts)).repeat_interleave(torch.tensor(sizes))
            order = attention.argsort(descending=True, stable=True)
            order = order[part[order].argsort(stable=True)]  # part by part, by falling attention
            first = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
            inside = torch.arange(len(order)) - first[part] < torch.tensor(places)[part]
            keep[row, columns[order[inside]]] = True
        return to_device(keep, tokens.valid.device)


def share_out(scores: list[float], sizes: list[int], k: int) -> list[int]:
    """Places, k in all, of parts with these scores and sizes."""
    total = sum(scores)
    shares = [one / total if total > 0 else 1 / len(scores) for one in scores]
    places = [min(int(k * share + 1e-9), size) for share, size in zip(shares, sizes, strict=True)]
    by_share = sorted(range(len(shares)), key=lambda part: -shares[part])
    left = min(k, sum(sizes)) - sum(places)
    while left > 0:
        by_share = [part for part in by_share if places[part] < sizes[part]]
        for part in by_share[:left]:
            places[part] += 1
        left -= len(by_share)
    return places
