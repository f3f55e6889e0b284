"""Muon for hidden matrices, Adam for the rest, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz: replace a batch of matrices (B, M, N) by about the nearest orthogonal ones."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return (x if wide else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al. 2024); equally shaped matrices are done as one batch."""

    def __init__(self, params: Iterable, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.02):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    shapes.setdefault(param.shape, []).append(param)
            for shape, params in shapes.items():
                grads = torch.stack([param.grad for param in params])
                for param in params:
                    if "momentum" not in self.state[param]:
                        self.state[param]["momentum"] = torch.zeros_like(param)
                kept = [self.state[param]["momentum"] for param in params]
                mean = torch.stack(kept).lerp_(grads, 1 - group["momentum"])
                update = orthogonalise(torch.lerp(grads, mean, group["momentum"]))
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for param, old, new, change in zip(params, kept, mean, update, strict=True):
                    old.copy_(new)
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-rate)


def optimisers(
    named: Iterable[tuple[str, torch.nn.Parameter]], muon_lr: float, adam_lr: float
) -> list[torch.optim.Optimizer]:
    """Muon on the matrices inside layers and projector, Adam on embeddings, norms, biases and heads."""
    matrices, rest = [], []
    for name, param in named:
        if param.requires_grad:
            hidden = param.ndim == 2 and "embed" not in name and ("layers" in name or "projector" in name)
            (matrices if hidden else rest).append(param)
    out: list[torch.optim.Optimizer] = [torch.optim.Adam(rest, lr=adam_lr, betas=(0.9, 0.99))]
    if matrices:
        out.append(Muon(matrices, lr=muon_lr))
    for optimiser in out:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return out


def set_rate(optimisers: list[torch.optim.Optimizer], step: int, steps: int, decay: float) -> float:
    """Warm up for 60 steps, stay, fall linearly to 1 % over the last share `decay`; gives the factor used."""
    left = (steps - step) / max(1, steps)
    factor = min(1.0, (step + 1) / 60) * min(1.0, max(0.01, left / decay))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * factor
    return factor
