"""ApET: keep what a few basis tokens cannot make up, and merge the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import Selection, SingleStagePruner, VisualTokens, option
from foveate.tensors import take_rows

RIDGE = 1e-5  # of the least squares


@dataclass(frozen=True, kw_only=True)
class ApET(SingleStagePruner):
    """Keep a few basis tokens and those that they approximate worst; average each other one into its likest survivor.

    Basis tokens are farthest points by Euclidean distance, the first the one farthest from the mean. Every token is
    approximated by least squares, with 1e-5 on the diagonal; its error is the length of what is left. A survivor
    counts once in its average; likest is by cosine.

    Source: "ApET", CVPR 2026 (arXiv 2602.19870); written from a description of the authors' code, where the first
    basis token is a random one, and which prunes twice, behind the encoder and before layer 16 of LLaVA-1.5 or 14 of
    Qwen2.5-VL. Here there is one cut, before `layer`.

    Raises
    ------
    BudgetError
        When an option makes no sense.
    """

    name: ClassVar[str] = "apet"
    paper: ClassVar[str] = "CVPR 2026, arXiv 2602.19870"
    url: ClassVar[str] = "https://arxiv.org/abs/2602.19870"
    summary: ClassVar[str] = "what a few basis tokens approximate worst; the rest merged"
    keeps_exactly: ClassVar[bool] = True

    layer: int = option(0, "cut before this decoder layer, counted from 0; 0 is before the language model", at_least=0)
    basis: int = option(10, "basis tokens, which stay; at least 1", at_least=1)
    merge: bool = option(True, "average each token that leaves into the survivor most like it; else it is dropped")

    def choose(self, tokens: VisualTokens, k: Tensor) -> Selection:
        features, valid = tokens.features.double(), tokens.valid
        k = torch.minimum(k, tokens.present)
        number = k.clamp(max=self.basis)
        columns, there = _farthest(features, valid, number.to(valid.device), int(number.max()))
        basis = take_rows(features, columns).masked_fill(~there[..., None], 0)
        gram = torch.bmm(basis, basis.mT) + RIDGE * torch.eye(basis.shape[1], device=basis.device, dtype=basis.dtype)
        weights = torch.linalg.solve(gram, torch.bmm(basis, features.mT))
        error = torch.linalg.vector_norm(features - torch.bmm(weights.mT, basis), dim=-1)
        keep = torch.zeros_like(valid, dtype=torch.long).scatter_add(1, columns, there.long()) > 0
        keep = keep | select.top_k(error, k - number, valid & ~keep)
        return Selection(keep, likest_survivor(tokens.features, keep)) if self.merge else Selection(keep)


def _farthest(features: Tensor, valid: Tensor, number: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Columns (B, most) of farthest points, and which of them (B, most) are among the row's number (B,)."""
    mean = (features * valid[..., None]).sum(1, keepdim=True) / valid.sum(-1).clamp(min=1)[:, None, None]
    far = torch.linalg.vector_norm(features - mean, dim=-1)
    columns: list[Tensor] = []
    for step in range(most):
        columns.append(far.masked_fill(~valid, -torch.inf).argmax(-1, keepdim=True))
        apart = torch.linalg.vector_norm(features - take_rows(features, columns[-1]), dim=-1)
        far = apart if not step else torch.minimum(far, apart)
    there = torch.arange(most, device=valid.device) < number[:, None]
    return torch.cat(columns, 1) if columns else there.long(), there


def likest_survivor(features: Tensor, keep: Tensor) -> Tensor:
    """(B, N) long, for each token the column of the one among `keep` that is likest by cosine; -1 without any."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    columns = torch.argsort((~keep).to(torch.uint8), dim=-1, stable=True)[:, : max(int(keep.sum(-1).max()), 1)]
    there = keep.gather(1, columns)
    cosine = torch.bmm(unit, take_rows(unit, columns).mT).masked_fill(~there[:, None], -torch.inf)
    return columns.gather(1, cosine.argmax(-1)).masked_fill(~there.any(-1, keepdim=True), -1)
