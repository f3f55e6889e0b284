"""Muon for the matrices inside layers, Adam for the rest; rates by step."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from foveate.tiny.training.optim import set_rate

__all__ = ["optimisers", "set_rate"]


def optimisers(
    named: Iterable[tuple[str, torch.nn.Parameter]], muon: float, adam: float, decay: float = 0.02
) -> list[torch.optim.Optimizer]:
    """`torch.optim.Muon` on the matrices inside layers and projector, Adam on embeddings, norms, biases, heads.

    Parameters
    ----------
    named
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
        out.append(torch.optim.Muon(matrices, lr=muon, weight_decay=decay))
    for optimiser in out:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return out
