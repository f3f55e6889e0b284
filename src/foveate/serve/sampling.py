"""The next token of each row by its own temperature, top-p, top-k and seed, alike in a batch and alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-4  # below, the most likely token


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are drawn.

    Attributes
    ----------
    temperature
        0: the most likely token.
    top_p
        Only the fewest most likely tokens that have this probability together.
    top_k
        Only so many of the most likely ones; 0: all.
    seed
        Of the row's own generator.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature < COLDEST

    def generator(self) -> torch.Generator:
        """Return the row's source of random numbers, on the CPU: the same on every device."""
        return torch.Generator().manual_seed(self.seed % 2**63)


def draw(scores: Tensor, rows: Sequence[Sampling], generators: Sequence[torch.Generator]) -> Tensor:
    """Return the next token of each row.

    Each row that samples takes one number of its generator, whatever stands beside it in the batch.

    Parameters
    ----------
    scores
        (B, V) logits.
    rows, generators
        B of each.

    Returns
    -------
    Tensor
        (B,) long.
    """
    best = scores.argmax(-1)
    if all(row.greedy for row in rows):
        return best
    numbers = [
        0.0 if row.greedy else float(torch.rand((), generator=at)) for row, at in zip(rows, generators, strict=True)
    ]

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=scores.device)[:, None]

    heat = column([1.0 if row.greedy else row.temperature for row in rows])
    ordered, tokens = (scores.float() / heat).sort(dim=-1, descending=True, stable=True)
    chances = ordered.softmax(-1)
    before = chances.cumsum(-1) - chances
    rank = torch.arange(chances.shape[-1], device=scores.device)
    most = column([row.top_k or chances.shape[-1] for row in rows])
    allowed = (before < column([row.top_p for row in rows])) & (rank < most)
    allowed[:, 0] = True
    reached = (chances * allowed).cumsum(-1)
    at = (reached <= column(numbers) * reached[:, -1:]).sum(-1, keepdim=True)
    last = allowed.long().sum(-1, keepdim=True) - 1  # rounding may lead beyond it
    drawn = tokens.gather(-1, torch.minimum(at, last))[:, 0]
    greedy = torch.tensor([row.greedy for row in rows], device=scores.device)
    return torch.where(greedy, best, drawn)
