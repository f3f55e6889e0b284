"""Muon on a processor without bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveate.tiny.training.optimisers import Float32Muon, newton_schulz


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_float32_muon_steps_as_torchs_does(shape):
    torch.manual_seed(0)
    start, grad = torch.randn(shape), torch.randn(shape)
    found = []
    for kind in (torch.optim.Muon, Float32Muon):
        weight = nn.Parameter(start.clone())
        weight.grad = grad.clone()
        kind([weight], lr=0.1, weight_decay=0.0).step()
        found.append(weight.detach() - start)
    torch.testing.assert_close(*found, atol=3e-3, rtol=0)
    whole = newton_schulz(grad, (3.4445, -4.775, 2.0315), 5, 1e-7)
    assert whole.shape == shape
    values = torch.linalg.svdvals(whole)
    assert 0.5 < values.min() <= values.max() < 1.5
