"""A method of one model replaced for as long as a pruner is attached, without a change to its class."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn


def guard_method(model: nn.Module, name: str, check: Callable[..., None]) -> Callable[[], None]:
    """Call `check` before each call of `model.<name>`, until the function that is returned is called.

    Where the model has no such method, nothing is done.

    Parameters
    ----------
    check
        Called with the arguments of the method; what it raises leaves at the call.
    """
    method: Any = getattr(model, name, None)
    if method is None:
        return lambda: None
    own, present = model.__dict__.get(name), name in model.__dict__
    active = True

    @functools.wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if active:
            check(*args, **kwargs)
        return method(*args, **kwargs)

    model.__dict__[name] = checked

    def undo() -> None:
        nonlocal active
        active = False  # someone may have wrapped this method in turn, and then it stays where it is
        if model.__dict__.get(name) is not checked:
            return
        if present:
            model.__dict__[name] = own
        else:
            del model.__dict__[name]

    return undo
