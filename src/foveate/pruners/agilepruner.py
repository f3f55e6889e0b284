"""AgilePruner: what the class token attends to, with like tokens left out the more, the more complex an image is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.tensors import take_rows, to_device


@dataclass(frozen=True, kw_only=True)
class AgilePruner(EncoderPruner):
    """Take the tokens that the class token attends to most, each time leaving out those too near to the one taken.

    After the r-th one is taken, all tokens leave whose 1 - cosine to it is under min(`limit`, `step` r rank /
    `average`). `rank` is the effective rank of the image's features: the exponential of the entropy of their singular
    values, brought to a sum of 1. So complex images are covered more evenly. Places that stay empty go to tokens that
    left, by attention. Features are the outputs of the block whose attention is read. Where the encoder has no class
    token, the mean over the queries of all patches stands in, and the report says so.

    Source: Baek et al., "AgilePruner", ICLR 2026 (arXiv 2603.01236), the formula of its project page; there is no
    code. `average` is a calibration set's there, and not given; without it every image counts as an average one, and
    the report says so. `limit`, the filling, and counting r from 1 are ours.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the encoder has no such block.
    """

    name: ClassVar[str] = "agilepruner"
    paper: ClassVar[str] = "Baek et al., ICLR 2026, arXiv 2603.01236 (from its project page)"
    url: ClassVar[str] = "https://arxiv.org/abs/2603.01236"
    summary: ClassVar[str] = "what the class token attends to, less like tokens in complex images"
    by_class_token: ClassVar[bool] = True

    average: float | None = option(
        None, "effective rank of an average image's features; none: all are average", over=0, under=math.inf
    )
    step: float = option(
        0.01, "by how much the distance to keep grows with each token, in [0, 2]", at_least=0, at_most=2
    )
    limit: float = option(0.5, "the distance to keep, 1 - cosine, is at most this, in [0, 2]", at_least=0, at_most=2)

    def notes(self, depth: int) -> tuple[str, ...]:
        note = "agilepruner: no average rank was given, so how complex an image is makes no difference"
        return (note,) if self.average is None and not self.keeps_all else ()

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return self.vision_attention(depth)

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        valid, attention = tokens.valid, tokens.class_received[0]
        k = torch.minimum(k, tokens.present)
        places = to_device(k, valid.device)[:, None]
        unit = torch.nn.functional.normalize(tokens.vision[0].float(), dim=-1)
        steps = torch.full_like(attention[:, :1], self.step)
        if self.average is not None:
            steps = steps * effective_rank(tokens.vision[0], valid)[:, None] / self.average
        keep, active = torch.zeros_like(valid), valid
        for rank in range(1, int(k.max()) + 1):
            pick = attention.masked_fill(~active, -torch.inf).argmax(-1, keepdim=True)
            taken = active.gather(1, pick) & (places >= rank)
            keep = keep.scatter(1, pick, keep.gather(1, pick) | taken)
            apart = 1 - torch.bmm(unit, take_rows(unit, pick).mT).squeeze(-1)
            active = active & ~(taken & (apart < (rank * steps).clamp(max=self.limit))) & ~keep
        return keep | select.top_k(attention, places[:, 0] - keep.sum(-1), valid & ~keep)


def effective_rank(features: Tensor, valid: Tensor) -> Tensor:
    """(B,) exponential of the entropy of the singular values of features (B, N, C), brought to a sum of 1.

    It lies between 1, where all tokens are multiples of one, and the smaller of N and C. By the eigenvalues of a
    matrix (C, C), in float64: O(N C² + C³).
    """
    rows = features.double().nan_to_num().masked_fill(~valid[..., None], 0)
    squares = torch.linalg.eigvalsh(torch.bmm(rows.mT, rows)).clamp(min=0)
    floor = squares.amax(-1, keepdim=True) * 1e-12  # less is rounding
    values = squares.masked_fill(squares <= floor, 0).sqrt()
    share = values / values.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum(-1).exp().float()
