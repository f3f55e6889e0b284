"""Several devices on a machine that has one: tensors with labels, and an error where an operation mixes them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from foveate.families import family_of

FIRST, SECOND = torch.device("xpu", 0), torch.device("xpu", 1)
GET_DEVICE = Tensor.device.__get__


class FakeDevices(TorchFunctionMode):
    """While open, `tensor.device`, `.to(device)` and `device=` speak of labels; tensors without one are on FIRST."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function == GET_DEVICE:
            return label(args[0])
        target = None
        if function is Tensor.to:
            args, kwargs, target = _without_device(args, kwargs)
        elif kwargs.get("device") is not None:
            target, kwargs["device"] = torch.device(kwargs["device"]), torch.device("cpu")
        elif function is Tensor.cpu:
            target = torch.device("cpu")
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        places = {label(one) for one in given if one.ndim}
        if function in (Tensor.__getitem__, Tensor.__setitem__) and len(places) > 1:
            places.discard(torch.device("cpu"))  # an index may stay there
        if target is None and len(places) > 1:
            raise RuntimeError(f"{getattr(function, '__name__', function)} got tensors on {places}")
        if function is torch.histc:  # of integers on other devices than the CPU alone
            args = (args[0].float(), *args[1:])
        out = function(*args, **kwargs)
        if isinstance(out, torch.Size):
            return out
        place = target or next(iter(places or map(label, given)), torch.device("cpu"))
        return tree_map(lambda one: _on(one, place), out)


def label(tensor: Tensor) -> torch.device:
    """The device that a tensor is said to be on."""
    return tensor.__dict__.get("said", FIRST)


def spread(model: Any, first: int) -> None:
    """Put decoder layers from number `first`, and the norm behind them, on the second device; the model stays so.

    As accelerate does it: a layer's own arguments are brought to its device within its forward, behind the hooks.
    """
    decoder = family_of(model).parts(model).decoder
    layers: Any = decoder.layers
    for number, layer in enumerate(layers):
        place = SECOND if number >= first else FIRST
        for value in (*layer.parameters(), *layer.buffers()):
            value.said = place
        layer.forward = _moving(layer.forward, place)
    for module in getattr(decoder, "altup_unembed_projections", ()):  # behind the last layer, on the first device
        module.forward = _moving(module.forward, FIRST)
    norm, head = _last_norm(decoder), model.get_output_embeddings()
    for value in norm.parameters():
        value.said = SECOND
    norm.forward = _moving(norm.forward, SECOND)
    head.forward = _moving(head.forward, FIRST)  # its weights may be those of the embeddings


def _last_norm(decoder: nn.Module) -> nn.Module:
    """The norm behind the layers, whatever it is called."""
    return next(module for name, module in decoder.named_children() if name.endswith("norm"))


def _moving(forward: Any, place: torch.device) -> Any:
    @functools.wraps(forward)  # as accelerate does it
    def moved(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda one: one.to(place) if hasattr(one, "to") else one, (args, kwargs))
        return forward(*args, **kwargs)

    return moved


def _on(value: Any, place: torch.device) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        if value.__dict__.get("said", place) != place:
            value = value.view_as(value)  # `.to()` may give the tensor itself, which stays where it is
        value.said = place
    return value


def _without_device(args: tuple, kwargs: dict) -> tuple[tuple, dict, torch.device | None]:
    target = label(args[0])
    left = [args[0]]
    for one in args[1:]:
        if isinstance(one, Tensor):
            target = label(one)
            left.append(one.dtype)
        elif isinstance(one, (torch.device, str, int)) and not isinstance(one, bool):
            target = torch.device(one) if not isinstance(one, int) else torch.device("xpu", one)
        elif isinstance(one, torch.dtype):
            left.append(one)
    if kwargs.get("device") is not None:
        target = torch.device(kwargs.pop("device"))
    kwargs.pop("non_blocking", None)
    if len(left) == 1 and not kwargs:
        left.append(left[0].dtype)
    return tuple(left), kwargs, target
