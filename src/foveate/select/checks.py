"""Arguments of the select functions, checked once and with what was given in the message."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

from foveate.tensors import to_device

P = ParamSpec("P")


def exact(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run `function` without gradients and outside autocast, which would turn its cosines into half precision."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        first = args[0] if args else next(iter(kwargs.values()), None)
        device = first.device.type if isinstance(first, Tensor) else "cpu"
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run


def check_scores(scores: Tensor, shape: torch.Size | None = None) -> Tensor:
    """Scores (B, N) ready to sort: half precision as float32, NaN as minus infinity, whole numbers as they are."""
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores must be a tensor (B, N), got {type(scores).__name__}")
    if scores.is_complex():
        raise TypeError(f"scores must be real numbers, got {scores.dtype}")
    if scores.ndim != 2:
        raise ValueError(f"scores must have shape (B, N), got {tuple(scores.shape)}")
    if shape is not None and scores.shape != shape:
        raise ValueError(f"scores have shape {tuple(scores.shape)}, features ask for {tuple(shape)}")
    if scores.dtype == torch.bool:
        return scores.to(torch.uint8)
    if not scores.is_floating_point():
        return scores
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return wide.masked_fill(wide.isnan(), -torch.inf)


def check_features(features: Tensor, name: str = "features", shape: str = "(B, N, D)") -> Tensor:
    """Features (B, N, D) as they are."""
    if not isinstance(features, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}, got {type(features).__name__}")
    if not features.is_floating_point():
        raise TypeError(f"{name} must be of a floating-point type, got {features.dtype}")
    if features.ndim != 3:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(features.shape)}")
    if features.shape[2] == 0 < features.shape[1]:
        raise ValueError(f"{name} need at least one dimension, got {tuple(features.shape)}")
    return features


def check_mask(name: str, mask: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
    """A bool mask of the shape on the device; all True for None."""
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        what = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool tensor (B, N) or None, got {what}")
    if mask.shape != shape:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, expected {tuple(shape)}")
    return mask.to(device)


def check_budget(k: int | Tensor, valid: Tensor) -> Tensor:
    """Tokens to keep in each row, (B,) long, at most the row's valid ones.

    A tensor on a GPU costs one read from it: a negative budget must not pass in silence. An int, or a tensor on the
    CPU, costs none.
    """
    present = valid.sum(-1)
    if isinstance(k, Tensor):
        if k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
            raise TypeError(f"k must hold whole numbers, got {k.dtype}")
        if k.ndim == 0:
            k = k.expand(len(valid))
        if k.shape != present.shape:
            raise ValueError(f"k must be an int or of shape ({len(valid)},), got {tuple(k.shape)}")
        if k.numel() and int(k.min()) < 0:
            raise ValueError(f"k must not be negative, got {k.tolist()}")
        return torch.minimum(to_device(k.to(present.dtype), present.device), present)
    if isinstance(k, bool):
        raise TypeError(f"k must be an int or a tensor (B,), got {k!r}")
    try:
        count = operator.index(k)
    except TypeError:
        raise TypeError(f"k must be an int or a tensor (B,), got {k!r}") from None
    if count < 0:
        raise ValueError(f"k must not be negative, got {count}")
    return present.clamp(max=count)


def widest(budget: Tensor) -> int:
    """Largest budget of the batch as a plain number; one read from the device."""
    return int(budget.max()) if budget.numel() else 0
