"""Layers without an attention mask: run on each sample's own tokens, so that nothing of the dropped ones gets in."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.engine.arguments import with_cache


def without_the_dropped(layer: nn.Module, stay: Tensor) -> Any:
    """Let `layer` work on each sample alone, on the tokens `stay` (B, L) bool says are there; a handle to undo it.

    The other tokens come out as the layer makes them; nobody reads them.
    """

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        out = (output[0] if isinstance(output, tuple) else output).clone()
        for row, mine in enumerate(stay):
            if not bool(mine.any()):
                continue
            others = {name: _pick(value, row, mine, len(stay)) for name, value in kwargs.items()}
            others |= {"attention_mask": None, **with_cache(module, None)}
            others.pop("hidden_states", None)
            alone = module.forward(hidden[row : row + 1, mine], *args[1:], **others)
            out[row, mine] = (alone[0] if isinstance(alone, tuple) else alone)[0]
        return (out, *output[1:]) if isinstance(output, tuple) else out

    return layer.register_forward_hook(hook, with_kwargs=True)


def _pick(value: Any, row: int, mine: Tensor, batch: int) -> Any:
    """Rows `mine` (L,) of sample `row` of rotary tables (..., B, L, D), position ids (..., B, L), or of several."""
    if isinstance(value, (tuple, list)):
        return tuple(_pick(one, row, mine, batch) for one in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    index = mine.nonzero()[:, 0]
    for axis in (-1, -2):
        before = axis - 1
        if value.ndim >= -before and value.shape[axis] == len(mine) and value.shape[before] in (1, batch):
            value = value.index_select(axis, index)
            return value.narrow(before, min(row, value.shape[before] - 1), 1)
    return value
