"""Muon for the matrices inside layers, Adam for the rest, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable

import torch


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
        # Of torch from 2.9 on. Its Newton-Schulz steps are in bfloat16: about 50 times as slow on a CPU without
        # instructions for that type.
        out.append(torch.optim.Muon(matrices, lr=muon, weight_decay=decay))
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
