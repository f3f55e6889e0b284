"""One cut: show the method its visual tokens, take its selection, merge, shorten the sequence."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from foveate.engine.forward_pass import ForwardPass, Prompt, StageRecord, Tapped
from foveate.pruners.base import Pruner, Selection, VisualTokens
from foveate.tensors import align_right, gather_positions, to_device, wide


def cut(
    hidden: Tensor,
    forward: ForwardPass,
    prompt: Prompt,
    method: Pruner,
    layer: int,
    last: bool,
    always: bool,
    shown: Tensor,
) -> tuple[Tensor, bool]:
    """Shorten `hidden` (..., B, n, D) to what `method` keeps before `layer`.

    Parameters
    ----------
    last
        Whether this is the last stage, at which the method's own tokens leave.
    always
        Gather even if everything stays (to test that gathering is exact).
    shown
        (B, n, D), what the method sees of `hidden`.

    Returns
    -------
    tuple
        The hidden states and whether anything was gathered.
    """
    # 1. the visual tokens among the rows of now, each sample's first in its columns
    watch = stopwatch(hidden.device)
    dense_positions = forward.dense_positions(shown.shape[0], hidden.device)
    visual = _padded(prompt.visual, forward.extra).gather(1, dense_positions)
    if forward.valid is not None:
        visual = visual & forward.valid
    columns = torch.argsort((~visual).to(torch.uint8), dim=-1, stable=True)[:, : max(prompt.counts)]
    # 2. the method selects
    with torch.no_grad():
        wants_text = method.wants_text(layer)
        tokens = _show(shown.detach(), forward, prompt, method, layer, dense_positions, columns, visual, wants_text)
        selection = method.select(tokens)
    selection = selection if isinstance(selection, Selection) else Selection(selection)
    _check_selection(selection, method, tokens.valid)
    keep = selection.keep & tokens.valid
    short = [count < method.min_visual for count in prompt.record.visual]
    if any(short):
        keep = keep | (tokens.valid & to_device(torch.tensor(short), keep.device)[:, None])
    if selection.carry is not None:  # the report needs it no more
        prompt.carried, selection = selection.carry, dataclasses.replace(selection, carry=None)
    elapsed = watch()
    kept = _count(keep, method, tokens, short)
    prompt.record.stages.append(StageRecord(layer, tokens.position, tokens.image, keep, kept, elapsed, selection))
    leaving = forward.extra if last else 0
    if kept == prompt.counts and not leaving and not always:
        return hidden, False
    # 3. tokens that leave go into survivors, where the method says so
    if selection.into is not None:
        hidden = merge(hidden, columns, keep, tokens.valid, selection)
    # 4. the rows that stay, in order, aligned to the right
    stay = torch.zeros_like(visual).scatter(1, columns, keep) | _others(
        forward, prompt, dense_positions, visual, leaving
    )
    lengths = [
        text + visible + forward.extra - leaving for text, visible in zip(prompt.record.text, kept, strict=True)
    ]
    picked = align_right(stay, max(lengths))
    left = dense_positions.gather(1, picked)
    valid = None
    if min(lengths) != max(lengths):
        valid = stay.gather(1, picked)
        left = left.masked_fill(~valid, 0)  # any place will do, but one that every tensor has
    prompt.counts, prompt.record.stages[-1].length = kept, max(lengths) - (forward.extra - leaving)
    forward.extra -= leaving
    forward.shorten(left, valid)
    return gather_positions(hidden, picked, -2), True


def _show(
    hidden: Tensor,
    forward: ForwardPass,
    prompt: Prompt,
    method: Pruner,
    layer: int,
    dense_positions: Tensor,
    columns: Tensor,
    visual: Tensor,
    wants_text: bool,
) -> VisualTokens:
    """The method's view of the tokens in `columns` (B, N)."""
    # 1. where the tokens are: in the prompt, in their images
    valid = visual.gather(1, columns)
    position = dense_positions.gather(1, columns)
    image, grid, row, column = (
        _padded(one, forward.extra).gather(1, position).masked_fill(~valid, -1) for one in prompt.layout.places
    )
    query = (dense_positions == prompt.query[:, None]).to(torch.uint8).argmax(-1)
    # up to the question's end: an answer that is scored with labels is not there yet while generating
    text = _others(forward, prompt, dense_positions, visual, forward.extra) & (
        dense_positions <= prompt.query[:, None]
    )
    text = text.to(hidden.dtype)
    features = gather_positions(hidden, columns, 1)
    # 2. what was read in the layer before, at these tokens
    tapped, forward.tapped = forward.tapped or Tapped(), None
    attention = tapped.attention
    if attention is not None:
        attention = attention[..., -dense_positions.shape[1] :].to(hidden.device)
        picked = columns[:, None, None].expand(-1, attention.shape[1], attention.shape[2], -1)
        attention = attention.gather(3, picked).masked_fill(~valid[:, None, None], 0)
    read = [one for one in (tapped.keys, tapped.values) if one is not None]
    rotary = tapped.rotary
    text_of = text_rows(forward, prompt, dense_positions) if read or wants_text or rotary else columns
    previous = tapped.previous
    if previous is not None:
        previous = gather_positions(previous, columns, 1).masked_fill(~valid[..., None], 0)
    # 3. what the vision encoder's blocks put out for them
    seen = prompt.vision
    vision, received = ((), ()) if seen is None else seen.at(position.masked_fill(~valid, -1), method)
    return VisualTokens(
        layer=layer,
        features=features if min(prompt.counts) == max(prompt.counts) else features.masked_fill(~valid[..., None], 0),
        valid=valid,
        dense=torch.tensor(prompt.record.visual),
        present=torch.tensor(prompt.counts),
        position=(position + forward.past).masked_fill(~valid, -1),
        image=image,
        grid=grid,
        row=row,
        column=column,
        grids=prompt.layout.grids,
        grids_known=prompt.layout.known,
        query=gather_positions(hidden, query[:, None], 1)[:, 0],
        mean_text=torch.einsum("bn,bnd->bd", text, hidden) / text.sum(-1, keepdim=True).clamp(min=1),
        attention=attention,
        extra=hidden[:, hidden.shape[1] - forward.extra :],
        vision=vision,
        received=tuple(one[..., 0] for one in received),
        class_received=tuple(one[..., 1] for one in received),
        keys=_of_rows(tapped.keys, columns, valid),
        values=_of_rows(tapped.values, columns, valid),
        text_keys=_of_rows(tapped.keys, text_of, text_of >= 0),
        text_values=_of_rows(tapped.values, text_of, text_of >= 0),
        previous=previous,
        text=_picked(hidden, text_of) if wants_text else None,
        dense_image=prompt.layout.places[0],
        rotary=_turns(rotary, columns.masked_fill(~valid, -1)),
        text_rotary=_turns(rotary, text_of),
        carried=prompt.carried,
    )


def _picked(hidden: Tensor, rows: Tensor) -> Tensor:
    """(B, m, D) of hidden states (B, n, D) at `rows` (B, m), zeros for -1."""
    return gather_positions(hidden, rows.clamp(min=0), 1).masked_fill((rows < 0)[..., None], 0)


def _turns(tables: tuple[Tensor, Tensor] | None, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both rotary tables (1 or B, n, E) at `rows` (B, m), zeros for -1."""
    if tables is None:
        return None
    cos, sin = (_picked(one.to(rows.device).expand(len(rows), -1, -1), rows) for one in tables)
    return cos, sin


def _of_rows(tensor: Tensor | None, rows: Tensor, valid: Tensor) -> Tensor | None:
    """(B, G, m, E) of keys or values (B, G, n, E) at `rows` (B, m), zeros where `valid` (B, m) is False."""
    if tensor is None:
        return None
    tensor = tensor.to(rows.device)
    index = rows.clamp(min=0)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
    return tensor.gather(2, index).masked_fill(~valid[:, None, :, None], 0)


def _check_selection(selection: Selection, method: Pruner, valid: Tensor) -> None:
    """Raise TypeError or ValueError unless a method's selection has the form that `select` promises."""
    name, shape = f"{type(method).__name__}.select", tuple(valid.shape)
    keep, into, weight = selection.keep, selection.into, selection.weight
    if keep.dtype != torch.bool or keep.shape != valid.shape:
        raise TypeError(
            f"{name} must return a bool mask of shape {shape}, got {keep.dtype} of shape {tuple(keep.shape)}"
        )
    if into is not None and (into.dtype != torch.long or into.shape != valid.shape):
        raise TypeError(f"{name}: into must be long of shape {shape}, got {into.dtype} of shape {tuple(into.shape)}")
    if weight is not None and (into is None or not weight.is_floating_point() or weight.shape != valid.shape):
        raise TypeError(f"{name}: weight must be floating-point of shape {shape}, and needs into")
    if selection.how not in ("average", "add"):
        raise ValueError(f"{name}: how must be 'average' or 'add', got {selection.how!r}")


ASTRAY = "a token was to go into one that does not stay: `into` names survivors, of columns 0 to {}"
SENSELESS = "a token was to go into another with a weight that is negative or no finite number"


def moves(selection: Selection, keep: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each visual token: the column that it goes into, its weight, and whether one of the two makes no sense.

    (B, N) long; fp32, zero for what goes nowhere; bool and bool. `selection.into` is not None.
    """
    into, last = cast("Tensor", selection.into), valid.shape[1] - 1
    target = into.clamp(0, max(0, last))
    goes = valid & ~keep & (into >= 0)
    astray = goes & ~(keep.gather(1, target) & (into <= last))
    weight = torch.ones_like(target, dtype=torch.float32) if selection.weight is None else selection.weight.float()
    senseless = goes & ~(weight.isfinite() & (weight >= 0))
    return target, weight.masked_fill(~goes | astray | senseless, 0), astray, senseless


def merge(hidden: Tensor, columns: Tensor, keep: Tensor, valid: Tensor, selection: Selection) -> Tensor:
    """`hidden` (..., B, n, D) with the tokens that leave added to the survivors that they go into; see `Selection`.

    Parameters
    ----------
    columns
        (B, N) row of each visual token.
    keep, valid
        (B, N) bool, as they hold in the end.
    """
    if selection.into is None:
        return hidden
    target, weight, astray, senseless = moves(selection, keep, valid)
    if keep.device.type == "cpu":  # free here; elsewhere such tokens are dropped, and the report says so
        if bool(astray.any()):
            raise ValueError(ASTRAY.format(valid.shape[1] - 1))
        if bool(senseless.any()):
            raise ValueError(SENSELESS)
    moved = weight > 0  # what is not moved may hold anything
    tokens = wide(gather_positions(hidden, columns, -2))
    added = (tokens * weight[..., None]).masked_fill(~moved[..., None], 0)
    to = target[..., None].expand_as(added)
    sums = torch.zeros_like(added).scatter_add(-2, to, added)
    total = torch.zeros_like(weight).scatter_add(1, target, weight)
    merged = tokens + sums
    if selection.how == "average":
        merged = merged / (1 + total)[..., None]
    changed = (total > 0)[..., None]
    rows = columns[..., None].expand_as(merged)
    merged = torch.where(changed, merged, tokens).to(hidden.dtype)
    return hidden.scatter(-2, rows, merged)


def _count(keep: Tensor, method: Pruner, tokens: VisualTokens, short: list[bool]) -> list[int]:
    """How many tokens of each sample `keep` keeps; a wait for the device unless the method knows."""
    known = method.kept(tokens.layer, tokens.dense, tokens.present)
    if known is None:
        return keep.sum(-1).tolist()
    told = torch.where(torch.tensor(short), tokens.present, known).tolist()
    if keep.device.type == "cpu" and keep.sum(-1).tolist() != told:  # free here, and what follows relies on it
        raise RuntimeError(f"{type(method).__name__}.kept says {told}, select kept {keep.sum(-1).tolist()}")
    return told


def text_rows(forward: ForwardPass, prompt: Prompt, dense_positions: Tensor) -> Tensor:
    """(B, T) rows of the text tokens between the first visual token and the prompt's end; -1 where there are fewer.

    Parameters
    ----------
    dense_positions
        (B, n) of the rows that are there.
    """
    visual = _padded(prompt.visual, forward.extra).gather(1, dense_positions)
    after = _padded(prompt.visual.cumsum(-1) > 0, forward.extra, True).gather(1, dense_positions)
    text = (
        _others(forward, prompt, dense_positions, visual, forward.extra)
        & after
        & (dense_positions <= prompt.query[:, None])
    )
    rows = torch.argsort((~text).to(torch.uint8), dim=-1, stable=True)[:, : max(prompt.record.text)]
    return rows.masked_fill(~text.gather(1, rows), -1)


def _others(forward: ForwardPass, prompt: Prompt, dense_positions: Tensor, visual: Tensor, leaving: int) -> Tensor:
    """(B, n) bool, everything but visual tokens, padding and the method's own tokens that leave."""
    others = ~visual
    if forward.valid is not None:
        others = others & forward.valid
    if prompt.real is not None:
        others = others & _padded(prompt.real, forward.extra, True).gather(1, dense_positions)
    return others & (dense_positions < forward.length) if leaving else others


def _padded(tensor: Tensor, extra: int, value: float = False) -> Tensor:
    """(B, L) tensor made long enough for the method's own tokens."""
    return torch.nn.functional.pad(tensor, (0, extra), value=value) if extra else tensor


def stopwatch(device: torch.device) -> Callable[[], Callable[[], float]]:
    """Start measuring; the answer stops it and gives a function that returns the milliseconds, without a sync now."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()

        def stop_cuda() -> Callable[[], float]:
            end.record()

            def elapsed() -> float:
                end.synchronize()
                return start.elapsed_time(end)

            return elapsed

        return stop_cuda
    begin = time.perf_counter()

    def stop() -> Callable[[], float]:
        milliseconds = (time.perf_counter() - begin) * 1e3
        return lambda: milliseconds

    return stop


def at_dense_length(hidden: Tensor, forward: ForwardPass) -> Tensor:
    """(B, L, D) of the states (B, n, D) that are left, zero where a token was dropped; without added tokens.

    Where the decoder went on with the last dense_positions only, as many as those.
    """
    forward.follow(hidden)
    index = forward.dense_positions(hidden.shape[0], hidden.device)
    valid = forward.valid if forward.valid is not None else torch.ones_like(index, dtype=torch.bool)
    batch = torch.arange(hidden.shape[0], device=hidden.device)[:, None].expand_as(index)
    length = forward.length if forward.newest is None else forward.newest
    full = hidden.new_zeros(hidden.shape[0], length, hidden.shape[-1])
    return full.index_put((batch[valid], index[valid] - (forward.length - length)), hidden[valid])


def add_features(hidden: Tensor, forward: ForwardPass, number: int) -> Tensor:
    """(B, n, D) states after layer `number`, with what the family adds there to the visual tokens that are left."""
    if forward.additions is None:
        return hidden
    forward.follow(hidden)
    mask = forward.additions.mask.to(hidden.device)
    value = forward.additions.values[number].to(hidden.device, hidden.dtype)
    if forward.kept is not None:
        rank = (mask.flatten().cumsum(0) - 1).view_as(mask)
        inside = forward.kept.clamp(max=forward.length - 1)
        there = forward.kept < forward.length
        if forward.valid is not None:
            there = there & forward.valid
        mask = mask.gather(1, inside) & there
        value = value[rank.gather(1, inside)[mask]]
    hidden = hidden.clone()
    hidden[mask, :] = hidden[mask, :] + value
    return hidden
