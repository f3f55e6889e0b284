"""Small problems on which a fused kernel must agree with the plain form before it is used on a device.

Each function takes the device and the type of the features, and tells whether the kernel's choice is the plain one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.kernels.dispatch import Check
from foveate.select import suppression as greedy
from foveate.select.cosine import unit_rows
from foveate.select.diversity import max_min_diversity
from foveate.select.dpp import low_rank_dpp
from foveate.select.top_k import descending

NUMBER = 48


def _problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features (3, NUMBER, 16), budgets and valid: products that are exact and often tie; random; random and padded.

    With equal rows, rows of zeros, and more programs than one for a sample.
    """
    generator = torch.Generator().manual_seed(0)
    exact = torch.randint(0, 2, (1, NUMBER, 16), generator=generator) * 2.0 - 1
    features = torch.cat([exact, torch.randn(2, NUMBER, 16, generator=generator)]).to(dtype)
    features[:, 30] = features[:, 7]
    features[:, [40, 41]] = 0
    valid = torch.arange(NUMBER) < torch.tensor([[NUMBER], [NUMBER], [44]])
    features[2, 45] = torch.nan
    return features, torch.tensor([NUMBER, 30, 12]), valid


def _diversity(device: torch.device, dtype: torch.dtype) -> bool:
    from foveate.kernels import diversity as fused_diversity

    features, budget, valid = _problem(dtype)
    start = torch.zeros_like(valid)
    start[2, 3:6] = True
    budget[0] = 40
    plain = max_min_diversity(features, budget, start, valid)
    fused = fused_diversity.max_min_diversity(*_on(device, features, budget, start, valid))
    return torch.equal(fused.cpu(), plain)


def _suppression(device: torch.device, dtype: torch.dtype) -> bool:
    from foveate.kernels import suppression as fused_suppression

    features, budget, valid = _problem(dtype)
    order = descending(torch.randn(valid.shape, generator=torch.Generator().manual_seed(1)), valid)
    limit = torch.tensor([0.5, 0.3, 0.2])
    plain = greedy._greedy(unit_rows(features.float()), order, budget, limit, valid)
    fused = fused_suppression.greedy(*_on(device, features, order, budget, limit, valid))
    return torch.equal(fused.cpu(), plain)


def _dpp(device: torch.device, dtype: torch.dtype) -> bool:
    from foveate.kernels import dpp as fused_dpp

    factors, budget, valid = _problem(dtype)
    budget = budget.clamp(max=12)  # the first factors are of rank 16: near the end rounding decides
    plain = low_rank_dpp(factors[1:], budget[1:], valid[1:])
    fused = fused_dpp.low_rank_dpp(*_on(device, factors[1:], budget[1:], valid[1:]))
    return torch.equal(fused.cpu(), plain)


def _on(device: torch.device, *tensors: Tensor) -> Any:
    return [tensor.to(device) for tensor in tensors]


CHECKS: dict[str, Check] = {
    "max_min_diversity": _diversity,
    "suppression": _suppression,
    "low_rank_dpp": _dpp,
}
