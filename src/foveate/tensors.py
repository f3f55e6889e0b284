"""Plumbing on tensors: gathering and ordering rows, and moving small tensors between host and device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
_modes = getattr(torch._C, "_len_torch_function_stack", lambda: 1)  # 0.04 µs; asking for the device takes 3 µs


def on_cpu_by_default(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function; tensors that it makes without naming a device are on the CPU, whatever the default device is.

    Budgets, grids and counts are the host's: with `torch.set_default_device("cuda")` each would cost a copy or fail.
    """
    if not _modes() or torch.get_default_device().type == "cpu":
        return function(*args, **kwargs)
    with torch.device("cpu"):
        return function(*args, **kwargs)


PREFIX = 64  # features by which equal tokens are looked for


def plain_number(value: Any) -> Any:
    """A number of numpy, or a 0-d array or tensor, as Python's own; anything else as it is."""
    if isinstance(value, (np.generic, np.ndarray)) or (isinstance(value, Tensor) and not value.is_meta):
        return value.item() if value.ndim == 0 else value
    return value


def wide(features: Tensor) -> Tensor:
    """Features as float32, or float64 where they are."""
    return features if features.dtype == torch.float64 else features.float()


def take_rows(features: Tensor, index: Tensor) -> Tensor:
    """Rows (B, C, D) of features (B, N, D) at index (B, C); whole rows are copied, which `gather` does by elements."""
    batch, number, width = features.shape
    first = torch.arange(batch, device=index.device)[:, None] * number
    return features.reshape(-1, width).index_select(0, (index + first).flatten()).view(batch, -1, width)


def gather_positions(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Positions `index` (B, n) along `dim`; the dimension before it is the batch, where 1 stands for every row.

    What is picked is where `index` is: that goes with the hidden states from device to device.
    """
    tensor = tensor.to(index.device)
    dim %= tensor.ndim
    batch, number = index.shape
    if tensor.ndim > dim + 1 and tensor.shape[dim - 1] == batch and tensor.is_contiguous():
        others, width = tensor.shape[: dim - 1], tensor.shape[dim + 1 :]
        rows = tensor.view(-1, tensor.shape[dim], width.numel())
        return take_rows(rows, index.repeat(others.numel(), 1)).view(*others, batch, number, *width)
    if tensor.shape[dim - 1] != batch:
        tensor = tensor.expand(*tensor.shape[: dim - 1], batch, *tensor.shape[dim:])
    view = [1] * tensor.ndim
    view[dim - 1], view[dim] = batch, number
    shape = list(tensor.shape)
    shape[dim] = number
    return tensor.gather(dim, index.view(view).expand(shape))


def gather_rotary(tables: Any, index: Tensor) -> Any:
    """The same for rotary tables: a (..., B or 1, L, D) tensor or a tuple of them, such as (cos, sin)."""
    if isinstance(tables, Tensor):
        picked = gather_positions(tables, index, -2)
        # a table that lies column by column makes queries that do, and sums over these round otherwise
        return picked if tables.stride(-1) == 1 else picked.mT.contiguous().mT
    return type(tables)(gather_rotary(table, index) for table in tables)


def table_length(tables: Any) -> int:
    """How many places rotary tables have."""
    return int(tables.shape[-2]) if isinstance(tables, Tensor) else table_length(tables[0])


def align_right(keep: Tensor, length: int) -> Tensor:
    """(B, length) columns of the true entries of keep (B, L), in order, right aligned; other columns before them."""
    return torch.argsort(keep.to(torch.uint8), dim=-1, stable=True)[:, keep.shape[1] - length :]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; from the CPU to a GPU without making the CPU wait for what the GPU is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def descending(scores: Tensor, valid: Tensor) -> Tensor:
    """Order (B, N) from the best score to the worst: ties by index, tokens that are not valid last."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    # A second stable sort keeps padding last, even after a valid score of minus infinity.
    padding = ~valid.gather(1, order)
    return order.gather(1, padding.to(torch.uint8).argsort(dim=-1, stable=True))


def alike(values: Tensor) -> float:
    """How far two cosines of this type may lie apart by rounding: less, and they count as equal."""
    return 8 * torch.finfo(values.dtype).eps


def first_lowest(cosines: Tensor) -> Tensor:
    """Index (..., 1) of the lowest cosine in the last dimension; of those that rounding may have parted, the first.

    The cosine of two tokens is one number, but not to the last bit if a product of matrices gives it twice.
    """
    lowest = cosines.amin(-1, keepdim=True)
    return (cosines <= lowest + alike(cosines)).to(torch.uint8).argmax(-1, keepdim=True)


def best(scores: Tensor, budget: Tensor, valid: Tensor) -> Tensor:
    """`top_k` of checked arguments: budget (B,) long, at most the row's valid tokens, and not read from its device."""
    within = torch.arange(scores.shape[1], device=scores.device) < budget[:, None]
    return torch.zeros_like(valid).scatter_(1, descending(scores, valid), within)
