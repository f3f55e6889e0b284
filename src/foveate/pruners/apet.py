"""ApET: keep what a few basis tokens cannot make up, and merge the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import Selection, SingleStagePruner, VisualTokens, option
from foveate.select.likest import ROWS, likest
from foveate.tensors import take_rows, to_device

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
        features, valid = tokens.features, tokens.valid
        k = torch.minimum(k, tokens.present)
        number = k.clamp(max=self.basis)
        columns, there = _farthest(features, valid, number)
        basis = take_rows(features, columns).double().masked_fill(~there[..., None], 0)
        gram = torch.bmm(basis, basis.mT) + RIDGE * torch.eye(basis.shape[1], device=basis.device, dtype=basis.dtype)
        solver = torch.linalg.lu_factor(gram)
        error = torch.cat([_unexplained(part.double(), basis, *solver) for part in features.split(ROWS, 1)], 1)
        keep = torch.zeros_like(valid, dtype=torch.long).scatter_add(1, columns, there.long()) > 0
        keep = keep | select.top_k(error, k - number, valid & ~keep)
        return Selection(keep, likest_survivor(features, keep, int(k.max()))) if self.merge else Selection(keep)


def _farthest(features: Tensor, valid: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (B, P) of farthest points, and which of them (B, P) are among the row's number (B,), on the CPU."""
    parts = [*zip(features.split(ROWS, 1), valid.split(ROWS, 1), strict=True)]
    total = torch.stack([(part.double() * real[..., None]).sum(1, keepdim=True) for part, real in parts]).sum(0)
    point = total / valid.sum(-1).clamp(min=1)[:, None, None]
    columns: list[Tensor] = []
    far, free = valid.double(), valid
    for _ in range(int(number.max())):
        apart = torch.cat([torch.linalg.vector_norm(part.double() - point, dim=-1) for part, _ in parts], 1)
        far = apart if len(columns) < 2 else torch.minimum(far, apart)
        columns.append(far.masked_fill(~free, -torch.inf).argmax(-1, keepdim=True))
        free = free.scatter(1, columns[-1], False)  # of equal tokens none is taken twice
        point = take_rows(features, columns[-1]).double()
    there = torch.arange(len(columns), device=valid.device) < to_device(number, valid.device)[:, None]
    return torch.cat(columns, 1) if columns else there.long(), there


def _unexplained(part: Tensor, basis: Tensor, factors: Tensor, pivots: Tensor) -> Tensor:
    """(B, n) length of what the basis (B, P, D) leaves of features (B, n, D)."""
    weights = torch.linalg.lu_solve(factors, pivots, torch.bmm(basis, part.mT))
    return torch.linalg.vector_norm(part - torch.bmm(weights.mT, basis), dim=-1)


def likest_survivor(features: Tensor, keep: Tensor, most: int) -> Tensor:
    """(B, N) long, for each token the column of the one among `keep` that is likest by cosine; -1 without any.

    Parameters
    ----------
    most
        At least the largest number kept in a row.
    """
    columns = torch.argsort((~keep).to(torch.uint8), dim=-1, stable=True)[:, : max(most, 1)]
    there = keep.gather(1, columns)
    _, place = likest(features, take_rows(features, columns), there)
    return columns.gather(1, place).masked_fill(~there.any(-1, keepdim=True), -1)
