"""Muon for the matrices inside layers, Adam for the rest, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

# What a CPU computes fast in. Without instructions for bfloat16 it takes about 50 times as long in it.
FAST = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


if not hasattr(torch.optim, "Muon"):
    raise ImportError(
        f"training the embedded model needs torch 2.9 or newer, for its Muon; this is {torch.__version__}"
    )


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon` whose Newton-Schulz steps are in float32 instead of bfloat16."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; see `torch.optim.Muon`."""
        with mock.patch.object(torch.optim._muon, "_zeropower_via_newtonschulz", newton_schulz):
            return super().step(closure)


def newton_schulz(grad: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The nearest orthogonal matrix to a gradient, about: Newton-Schulz steps with Muon's coefficients."""
    a, b, c = coefficients
    x = grad.T if grad.shape[0] > grad.shape[1] else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.shape[0] > grad.shape[1] else x


def muon_of(matrices: list[torch.nn.Parameter], rate: float, decay: float = 0.02) -> torch.optim.Optimizer:
    """Muon for matrices, in what their device computes fast in."""
    kind = torch.optim.Muon if matrices[0].is_cuda or FAST is torch.bfloat16 else Float32Muon
    return kind(matrices, lr=rate, weight_decay=decay)  # of torch from 2.9 on


def optimisers(
    named: Iterable[tuple[str, torch.nn.Parameter]], muon: float, adam: float, decay: float = 0.02
) -> list[torch.optim.Optimizer]:
    """Muon on the matrices inside layers and projector, Adam on embeddings, norms, biases and heads.

    Parameters
    ----------
    named
        What is trained.
    muon, adam
        Peak rates.
    decay
        Muon's weight decay.
    """
    matrices, rest = [], []
    for name, param in named:
        if param.requires_grad:
            hidden = param.ndim == 2 and "embed" not in name and ("layers" in name or "projector" in name)
            (matrices if hidden else rest).append(param)
    out: list[torch.optim.Optimizer] = [torch.optim.Adam(rest, lr=adam, betas=(0.9, 0.99))]
    if matrices:
        out.append(muon_of(matrices, muon, decay))
    for optimiser in out:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return out


def set_rate(optimisers: list[torch.optim.Optimizer], step: int, steps: int, decay: float) -> float:
    """Warm up for 60 steps, stay, fall linearly to 1 % over the last share `decay`; return the factor used."""
    left = (steps - step) / max(1, steps)
    factor = min(1.0, (step + 1) / 60) * min(1.0, max(0.01, left / decay))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * factor
    return factor
