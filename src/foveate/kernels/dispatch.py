"""The Triton kernels in place of the plain forms: on CUDA, and once they have given the same results there.

The kernels have so far only run in Triton's interpreter. So before its first use on a device each is tried there on
small problems against the plain form on the CPU. Where it differs, does not compile or cannot be launched, that is
said once, and the plain form is used from then on. Triton is imported on first use only.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOST = 32768  # tokens of a sample: one program holds a number for each in its registers
TYPES = (torch.float32, torch.float16, torch.bfloat16)

Key = tuple[str, torch.device, torch.dtype]
Check = Callable[[torch.device, torch.dtype], bool]

_trusted: dict[Key, bool] = {}
_lock = threading.RLock()


def max_min_diversity(
    features: Tensor, budget: Tensor, start: Tensor, valid: Tensor, first: str, agrees: Check
) -> Tensor | None:
    """`select.max_min_diversity` of checked arguments; None: take the plain form."""

    def compute() -> Tensor:
        from foveate.kernels.diversity import max_min_diversity

        return max_min_diversity(features, budget, start, valid, first)

    return attempt("max_min_diversity", features, compute, agrees) if _fits(features) else None


def suppression(
    features: Tensor, order: Tensor, budget: Tensor, limit: Tensor, valid: Tensor, agrees: Check
) -> Tensor | None:
    """The greedy set of `select.suppression`, see `select.nms._greedy`; None: take the plain form."""

    def compute() -> Tensor:
        from foveate.kernels.suppression import greedy

        return greedy(features, order, budget, limit, valid)

    return attempt("suppression", features, compute, agrees) if _fits(features) else None


def low_rank_dpp(factors: Tensor, k: int | Tensor, budget: Tensor, valid: Tensor, agrees: Check) -> Tensor | None:
    """`select.low_rank_dpp` of checked arguments, k as it was given; None: take the plain form."""

    def compute() -> Tensor:
        from foveate.kernels.dpp import low_rank_dpp

        most: Any = k
        if isinstance(k, Tensor):
            most = int(k.max()) if k.device.type == "cpu" else None
        return low_rank_dpp(factors, budget, valid, most)

    return attempt("low_rank_dpp", factors, compute, agrees) if _fits(factors) else None


def attempt(name: str, tensor: Tensor, compute: Callable[[], Tensor], check: Check) -> Tensor | None:
    """What `compute` gives by the kernel `name` on the tensor's device; None: take the plain form.

    `check(device, dtype)`, of the plain form's module, runs before the first use: whether the kernel selects the same
    there.

    Warns
    -----
    RuntimeWarning
        Once for each kernel, device and type, when the kernel fails or gives other results than the plain form.
    """
    if tensor.dtype not in TYPES or not supported(tensor.device):
        return None
    key = name, tensor.device, tensor.dtype
    with torch.cuda.device(tensor.device) if tensor.is_cuda else torch.no_grad():  # Triton launches on the current one
        if not _proven(key, check):
            return None
        try:
            return compute()
        except torch.OutOfMemoryError:  # says nothing of the kernel
            raise
        except Exception as error:  # noqa: BLE001 - Triton's have no common class; the warning has it
            _distrust(key, f"failed: {error!r}")
            return None


@functools.cache
def supported(device: torch.device) -> bool:
    """Kernels are available for the device."""
    return device.type == "cuda" and torch.version.hip is None and importlib.util.find_spec("triton") is not None


def small_problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features (3, 48, 16), budgets (3,) and valid (3, 48) on which a kernel must agree with its plain form.

    Products that are exact and often tie; random; random and padded. With equal rows, rows of zeros, and more programs
    than one for a sample.
    """
    number, generator = 48, torch.Generator().manual_seed(0)
    exact = torch.randint(0, 2, (1, number, 16), generator=generator) * 2.0 - 1
    features = torch.cat([exact, torch.randn(2, number, 16, generator=generator)]).to(dtype)
    features[:, 30] = features[:, 7]
    features[::2, [40, 41]] = 0  # the most isolated tokens there are
    valid = torch.arange(number) < torch.tensor([[number], [number], [44]])
    features[2, 45] = torch.nan
    return features, torch.tensor([number, 30, 12]), valid


def _fits(features: Tensor) -> bool:
    return features.numel() > 0 and 1 < features.shape[1] <= MOST and features.shape[2] > 1


def _proven(key: Key, check: Check) -> bool:
    """Try the kernel the first time it is asked for."""
    if key not in _trusted:
        with _lock:
            if key not in _trusted:
                try:
                    same = check(*key[1:])
                except Exception as error:  # noqa: BLE001 - as above
                    _distrust(key, f"failed: {error!r}")
                else:
                    _trusted[key] = True
                    if not same:
                        _distrust(key, "gives other results than the plain form")
    return _trusted[key]


def _distrust(key: Key, why: str) -> None:
    with _lock:
        first = _trusted.get(key, True)
        _trusted[key] = False
    if first:
        name, device, dtype = key
        warnings.warn(
            f"foveate: the fused kernel {name} on {device} ({dtype}) {why}. The plain form is used instead: "
            "same results, slower. Please report this.",
            RuntimeWarning,
            stacklevel=2,
        )
