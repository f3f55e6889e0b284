"""What both makers of this folder draw at random, and how they tell a case that is near a tie."""

from __future__ import annotations

import torch


def fill(named, generator: torch.Generator, weight: float) -> None:
    """Random weights, far enough from the usual start that norms, biases and orders all show."""
    for name, value in named:
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name or "ln_q" in name:
            value.data.copy_(1 + 0.2 * noise)
        elif value.ndim == 1:
            value.data.copy_(0.2 * noise)
        elif "embed" in name and "patch" not in name:
            value.data.copy_(noise)
        else:
            value.data.copy_(weight * noise)


def parameters_of(model) -> list[tuple[str, torch.nn.Parameter]]:
    """The new parameters by name, whatever holds them."""
    found = []
    for name, part in model.new_modules_to_be_saved().items():
        inner = [("", part)] if isinstance(part, torch.nn.Parameter) else part.named_parameters()
        found += [(f"{name}.{key}", value) for key, value in inner]
    return found


def middle(logits: torch.Tensor) -> float:
    """The middle of the widest gap between neighbours in the middle third."""
    ranked = logits.sort().values
    third = len(ranked) // 3
    gaps = ranked[third + 1 : -third] - ranked[third : -third - 1]
    at = third + int(gaps.argmax())
    return float(ranked[at] + ranked[at + 1]) / 2


def doubt(result: dict, options: dict) -> str:
    """What is near a tie in a case; empty if nothing is."""
    steps = result["step_logits"].topk(2).values
    if (steps[..., 0] - steps[..., 1]).min() < 0.05:
        return "greedy step"
    cut = torch.logit(torch.tensor(options.get("reduce_threshold", 0.5)))
    by_rank = any(key in options for key in ("max_remain_ratio", "min_remain_num", "fixed_remain_ratio"))
    by_rank = by_rank and "anchor_positions" not in options
    for row, kept in zip(result["logits"], result["masks"], strict=True):
        if len(row) == 0:
            continue
        if (row - cut).abs().min() < 0.01 or not 0 < kept.sum() < len(kept):
            return "threshold"
        ranked = row.sigmoid().sort(descending=True).values
        places = int(kept.sum())
        if by_rank and ranked[places - 1] - ranked[places] < 1e-4:
            return "rank"
    return ""
