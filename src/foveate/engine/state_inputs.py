"""The arguments of a layer that has a running state in the place of attention, for the tokens that are there.

Such a layer reads its sequence token by token into a state of fixed size. A token that was removed before it simply is
not in its sequence. Padding must leave the state as it was, which it does only at the very beginning, where the state
is zero and the model's own mask makes its inputs zero: that is where right-aligned gathering puts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.arguments import Arguments
from foveate.engine.cache_linear import has_state
from foveate.engine.forward_pass import Frame
from foveate.engine.layer_inputs import refuse_unknown
from foveate.errors import BudgetError, UnsupportedCacheError, UnsupportedModelError
from foveate.pruners.base import PromptRows, Pruner


def pick_state_inputs(
    kwargs: dict[str, Any], names: Arguments, frame: Frame, hidden: Tensor, cached: Any
) -> dict[str, Any]:
    """The arguments of a layer with a state, for the tokens that are there.

    Parameters
    ----------
    kwargs
        The arguments as the model made them, for the dense prompt.
    names
        What the layer calls them.
    hidden
        (B, n, D), the tokens that are there.
    cached
        The layer of the cache; None without one.

    Raises
    ------
    UnsupportedCacheError
        Where padding would come behind a state that is not zero: samples that kept different numbers of tokens, in a
        later turn.
    UnsupportedModelError
        Where the mask is none of (B, L).
    """
    if frame.index is None:
        return kwargs
    refuse_unknown(kwargs, frame.length)
    if frame.alive is not None and cached is not None and has_state(cached):
        raise UnsupportedCacheError(
            "in a later turn, samples of a batch that keep different numbers of visual tokens cannot go through "
            "linear attention or convolutions: run each alone, or choose a fixed number of tokens"
        )
    mask = kwargs.get(names.mask)
    picked = frame.once("state mask", mask, lambda: _pick_mask(mask, frame, hidden))
    return {**kwargs, names.mask: picked}


def _pick_mask(mask: Tensor | None, frame: Frame, hidden: Tensor) -> Tensor | None:
    """(B, n), zero for padding; None without any."""
    if mask is None:
        return frame.alive
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise UnsupportedModelError(
            "the layers with linear attention take a mask of another form than one entry a token, which foveate "
            "cannot cut"
        )
    places = frame.places(hidden.shape[0], hidden.device)
    dense = mask[:, -frame.length :].expand(hidden.shape[0], -1).to(places.device)
    picked = dense.gather(1, places.clamp(max=frame.length - 1))
    picked = torch.where(places < frame.length, picked, torch.ones_like(picked))  # the method's own tokens
    return picked if frame.alive is None else picked * frame.alive.to(picked.dtype)


def check_method(
    method: Pruner, stages: Sequence[int], attention: Sequence[nn.Module | None], extra: Tensor | None
) -> None:
    """Refuse a method that a model with such layers cannot serve.

    Parameters
    ----------
    method
        The method, resolved.
    stages
        The layers before which it cuts.
    attention
        The attention module of each layer, or None.
    extra
        The tokens that the method adds, or None.

    Raises
    ------
    BudgetError
        When it wants attention rows of a layer that has none; names the layers before which it can cut. The nearest
        attention is not taken instead: it may lie layers before, where other tokens were there.
    UnsupportedModelError
        When it adds tokens, which no state before its last stage would forget.
    """
    if extra is not None and None in attention[: max(stages, default=0)]:
        raise UnsupportedModelError(
            f"{method.name}: it adds tokens to the prompt and takes them out again, but this model's layers with "
            "linear attention or convolutions would keep them in their state"
        )
    row = torch.zeros(1, 1, dtype=torch.long)
    rows = PromptRows(row[0], row, row)
    without = [stage for stage in stages if stage and attention[stage - 1] is None]
    wrong = [stage for stage in without if method.attention_rows(stage, rows) is not None]
    if wrong:
        able = [number + 1 for number, module in enumerate(attention[:-1]) if module is not None]
        raise BudgetError(
            f"{method.name}: it reads the attention of the layer before its stage, and the layers before "
            f"{', '.join(map(str, wrong))} have none in this model (linear attention, convolutions); a stage that "
            f"reads attention can lie before {', '.join(map(str, able)) or 'no layer'}"
        )
