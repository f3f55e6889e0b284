"""Random inputs for the select functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass
class Case:
    features: Tensor
    scores: Tensor
    k: Tensor
    start: Tensor
    valid: Tensor

    def rows(self) -> list[tuple[list[list[float]], list[float], int, list[bool], list[bool]]]:
        """Each sample as plain lists."""
        tensors = (self.features.double(), self.scores.double(), self.k, self.start, self.valid)
        return list(zip(*(tensor.tolist() for tensor in tensors), strict=True))


@st.composite
def tied(draw: st.DrawFn) -> Case:
    """Entries of +1 and -1 in 4 or 16 dimensions: norms and cosines are exact in binary, and many are equal."""
    batch, number = draw(st.integers(1, 3)), draw(st.integers(1, 14))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    width = draw(st.sampled_from((4, 16)))
    features = torch.randint(0, 2, (batch, number, width), generator=generator) * 2.0 - 1
    if draw(st.booleans()):
        features[torch.rand(batch, number, generator=generator) < 0.2] = 0
    scores = torch.randint(-3, 4, (batch, number), generator=generator) / 4
    return _rest(draw, generator, features, scores)


@st.composite
def continuous(draw: st.DrawFn) -> Case:
    """Normal features around a few centres, so that cosines spread from low to high; nothing is equal."""
    batch, number, width = draw(st.integers(1, 3)), draw(st.integers(1, 14)), draw(st.sampled_from((3, 8)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    centres = torch.randn(batch, 3, width, generator=generator)
    spread = draw(st.sampled_from((0.1, 0.5, 2.0)))
    which = torch.randint(0, 3, (batch, number), generator=generator)
    features = centres[torch.arange(batch)[:, None], which] + spread * torch.randn(
        batch, number, width, generator=generator
    )
    return _rest(draw, generator, features, torch.randn(batch, number, generator=generator))


def _rest(draw: st.DrawFn, generator: torch.Generator, features: Tensor, scores: Tensor) -> Case:
    batch, number = scores.shape
    share = draw(st.sampled_from((0.0, 0.3)))
    valid = torch.rand(batch, number, generator=generator) >= share
    start = torch.rand(batch, number, generator=generator) < draw(st.sampled_from((0.0, 0.2, 0.6)))
    k = torch.randint(0, number + 3, (batch,), generator=generator)
    return Case(features, scores, k, start, valid)


def sets(keep: Tensor) -> list[set[int]]:
    """Indices of the kept tokens, for each row."""
    return [set(row.nonzero().flatten().tolist()) for row in keep]
