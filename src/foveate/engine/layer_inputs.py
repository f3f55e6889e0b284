"""A decoder layer's arguments for the tokens that are there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.arguments import NAMES, Arguments
from foveate.engine.cache import AnyPrunedLayer, PrunedStaticLayer
from foveate.engine.forward_pass import ForwardPass, Prompt
from foveate.engine.masks import pick_mask
from foveate.engine.shared_kv import Keys
from foveate.errors import BudgetError, UnsupportedCacheError, UnsupportedModelError
from foveate.pruners.base import PromptRows, Pruner
from foveate.tensors import gather_positions, gather_rotary, table_length

# labels: some models hand all they are given to every layer
KNOWN = {*(name for names in NAMES.values() for name in names), "use_cache", "labels"}


def pick_inputs(
    kwargs: dict[str, Any],
    names: Arguments,
    forward: ForwardPass,
    hidden: Tensor,
    cached: AnyPrunedLayer | None,
    group: int,
    flat: bool,
    tokens: Mapping[str, int],
    read: Keys | None,
) -> tuple[dict[str, Any], Keys]:
    """Rotary tables, position ids and mask picked for the tokens in `hidden`, and the cache layer told what comes.

    Parameters
    ----------
    kwargs
        The arguments as the model made them, for the dense prompt.
    names
        What the layer calls them.
    hidden
        (..., B, n, D), the tokens that are there.
    cached
        The layer's KV cache; None without one, and for a layer that reads the keys and values of another.
    group
        Layers of one group lie between the same stages: their caches hold the same positions.
    flat
        Whether the attention backend takes (B, K) padding masks.
    tokens
        Other arguments with one entry a token, and the axis of the tokens in each.
    read
        The keys of another layer that this layer reads; None for a layer that makes its own.

    Returns
    -------
    tuple
        The arguments, and the keys that the layer attends to.
    """
    dense_positions = forward.once("places", None, lambda: forward.dense_positions(hidden.shape[-3], hidden.device))
    kwargs = dict(kwargs)
    if forward.kept is not None:
        refuse_unknown(kwargs, forward.length, tokens)
        tables, ids = kwargs.get(names.rotary), kwargs.get(names.positions)
        if tables is not None:
            index = _inside(table_length(tables), forward, dense_positions)
            kwargs[names.rotary] = forward.once("rotary", tables, lambda: gather_rotary(tables, index))
        if ids is not None:
            picked = forward.once("ids", ids, lambda: gather_positions(forward.continued(ids), dense_positions, -1))
            kwargs[names.positions] = picked
        for name, axis in tokens.items():
            if isinstance(kwargs.get(name), Tensor):
                kwargs[name] = _pick_tokens(name, kwargs[name], axis, forward, dense_positions)
    keys = _coming_keys(forward, dense_positions, cached, group) if read is None else read
    padded = forward.valid is not None or keys.padded
    rows = forward.once("rows", None, lambda: forward.in_conversation(dense_positions, keys.past))
    slots, column, end = keys.slots.to(hidden.device), keys.after - rows.shape[1], keys.past + forward.length
    held = group, keys.window
    last = forward.prompt.query + keys.past if forward.prompt is not None and forward.extra else None
    mask = kwargs.get(names.mask)
    kwargs[names.mask] = forward.once(
        ("mask", held), mask, lambda: pick_mask(mask, rows, slots, end, last, padded, flat, keys.first, column)
    )
    return kwargs, keys


def row_scale(forward: ForwardPass, scale: Callable[[Tensor], Tensor], past: int) -> Tensor | None:
    """(B, n) by what to multiply the rows of an attention that scales them by their number; None: by nothing.

    Parameters
    ----------
    scale
        As a function of positions; it nowhere falls.
    past
        Tokens before this forward pass.
    """
    ends = scale(torch.tensor([past, past + forward.length]))
    if forward.kept is None or bool(ends[0] == ends[1]):
        return None
    counted = torch.arange(forward.kept.shape[1], device=forward.kept.device)
    return scale(forward.kept + past) / scale(counted + past)


def _coming_keys(forward: ForwardPass, dense_positions: Tensor, cached: AnyPrunedLayer | None, group: int) -> Keys:
    """The keys of a layer that makes its own, once these tokens (B, n) are there; its cache layer is told."""
    past = forward.past if cached is None else forward.once("past", None, lambda: cached.dense_length)
    rows = forward.once("rows", None, lambda: forward.in_conversation(dense_positions, past))
    if cached is None:
        return Keys(rows, rows.shape[1], past, forward.valid is not None, 0, None)
    end, coming = past + forward.length, rows.shape[1]
    padded = forward.valid is not None or cached.padded
    held = group, cached.window  # layers of one group and one window hold the same tokens
    slots = forward.once(("slots", held), None, lambda: cached.joined(rows, forward.length))
    stay = forward.once(("stay", held), None, lambda: cached.slots_to_keep(slots, end, coming))
    column = forward.once(("column", held), None, lambda: cached.first_column(slots, rows))
    cached.expect(slots, end, padded, stay)
    return Keys(slots, column + coming, past, padded, cached.get_mask_sizes(forward.length)[1], cached.window)


def _inside(length: int, forward: ForwardPass, index: Tensor) -> Tensor:
    """(B, n) where to find dense positions `index` among the `length` entries of what the decoder hands to a layer.

    They are those of the last dense positions, where it goes on with no others (then those before are padding), or of
    all of them after those of the tokens that the method adds.
    """
    if length == forward.length:
        return index
    if length > forward.length:
        return (index + (length - forward.length)) % length
    return (index - (forward.length - length)).clamp(min=0)


def _pick_tokens(name: str, value: Tensor, axis: int, forward: ForwardPass, dense_positions: Tensor) -> Tensor:
    """The entries of an argument for the tokens that are there; zeros for those that the method added."""
    check_tokens(name, value, axis, forward.length if forward.newest is None else forward.newest)
    if forward.extra:
        shape = list(value.shape)
        shape[axis] = forward.extra
        value = torch.cat([value.new_zeros(shape), value], axis)
    return gather_positions(value, _inside(value.shape[axis], forward, dense_positions), axis)


def check_tokens(name: str, value: Tensor, axis: int, length: int) -> None:
    """Refuse an argument of another length: the dense model may stop at that; after a cut nobody would see it."""
    given = value.shape[axis]
    if given != length:
        raise UnsupportedModelError(
            f"{name!r} must have one entry a token for the decoder layers, but has {given} for {length} tokens"
        )


def refuse_unknown(kwargs: dict[str, Any], length: int, tokens: Collection[str] = ()) -> None:
    """An argument with one entry a token that the engine does not know would no longer fit the tokens."""
    for name, value in kwargs.items():
        if name.startswith("cu_seq") and value is not None:
            raise UnsupportedModelError("pruning does not support packed sequences (cu_seq_lens)")
        if name not in KNOWN and name not in tokens and isinstance(value, Tensor) and length in value.shape:
            raise UnsupportedModelError(
                f"the decoder layers take {name!r}, one entry a token, which foveate cannot cut"
            )


def static_step(
    number: int, names: Arguments, layer: nn.Module, args: tuple, kwargs: dict
) -> tuple[tuple, dict] | None:
    """One token more in a static cache. This is compiled with the model: it reads no state but the cache's tensors."""
    cache = kwargs.get(names.cache)
    hidden = args[0] if args else kwargs[names.hidden]
    layers = getattr(cache, "layers", ())  # a paged cache has none
    if hidden.shape[-2] > 1 or len(layers) <= number:
        return None
    cached = layers[number]
    if not isinstance(cached, PrunedStaticLayer):
        return None
    return args, {**kwargs, names.mask: cached.place(kwargs.get(names.mask))}


def pick_state_inputs(
    kwargs: dict[str, Any], names: Arguments, forward: ForwardPass, hidden: Tensor
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

    Raises
    ------
    UnsupportedModelError
        Where the mask is none of (B, L).
    """
    if forward.kept is None:
        return kwargs
    refuse_unknown(kwargs, forward.length)
    mask = kwargs.get(names.mask)
    picked = forward.once("state mask", mask, lambda: _pick_mask(mask, forward, hidden))
    return {**kwargs, names.mask: picked}


UNEVEN = (
    "in a later turn, samples of a batch that keep different numbers of {} cannot go through linear attention or "
    "convolutions{}: run each alone, or keep a fixed number of tokens"
)


def check_even(prompt: Prompt, method: Pruner, stages: Sequence[int], always: bool) -> None:
    """Refuse a batch whose samples will not have the same number of tokens in layers whose state is not zero.

    Padding would come after that state and make it fade. It is asked before any layer runs, so a method must know how
    many tokens it keeps without looking at them.

    Parameters
    ----------
    method
        The method, resolved.
    stages
        The layers before which it cuts, of those before the last layer with such a state.
    always
        Whether the prompt's own padding is taken out also where every visual token stays.

    Raises
    ------
    UnsupportedCacheError
        Saying what to do.
    """
    dense, text, present = (torch.tensor(one) for one in (prompt.record.visual, prompt.record.text, prompt.counts))
    for stage in stages:
        if len(present) == 1 or not bool(present.any()):
            return
        one = method.member(stage)
        known = one.kept(stage, dense, present)
        if known is None:
            raise UnsupportedCacheError(UNEVEN.format("tokens", f", and {one.name} finds its number only then"))
        left = torch.where(dense < one.min_visual, present, known)
        if (always or not torch.equal(left, present)) and len((text + left).unique()) > 1:
            raise UnsupportedCacheError(UNEVEN.format("visual tokens", ""))
        present = left


def check_state_masks(mask: Any, kinds: Collection[str]) -> None:
    """Refuse a user's own masks by kind of layer, where those of `kinds`, layers with a state, are none of (B, L)."""
    if isinstance(mask, Mapping):
        for kind in kinds:
            _check_state_mask(mask.get(kind))


def _check_state_mask(mask: Any) -> None:
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        raise UnsupportedModelError(
            "the layers with linear attention take a mask of another form than one entry a token, which foveate "
            "cannot cut"
        )


def _pick_mask(mask: Tensor | None, forward: ForwardPass, hidden: Tensor) -> Tensor | None:
    """(B, n), zero for padding; None without any."""
    _check_state_mask(mask)
    if mask is None:
        return forward.valid
    dense_positions = forward.dense_positions(hidden.shape[0], hidden.device)
    dense = mask[:, -forward.length :].expand(hidden.shape[0], -1).to(dense_positions.device)
    picked = dense.gather(1, dense_positions.clamp(max=forward.length - 1))
    picked = torch.where(dense_positions < forward.length, picked, torch.ones_like(picked))  # the method's own tokens
    return picked if forward.valid is None else picked * forward.valid.to(picked.dtype)


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
        When it wants attention rows, keys or values of a layer that has none; names the layers before which it can
        cut. The nearest attention is not taken instead: it may lie layers before, where other tokens were there.
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

    def reads(stage: int) -> bool:
        one = method.member(stage)
        return bool(one.kv(stage)) or one.attention_rows(stage, rows) is not None

    wrong = [stage for stage in stages if stage and attention[stage - 1] is None and reads(stage)]
    if wrong:
        able = [number + 1 for number, module in enumerate(attention[:-1]) if module is not None]
        raise BudgetError(
            f"{method.member(wrong[0]).name}: it reads the attention of the layer before its stage, and the layers "
            f"before {', '.join(map(str, wrong))} have none in this model (linear attention, convolutions); a stage "
            f"that reads attention can lie before {', '.join(map(str, able)) or 'no layer'}"
        )
