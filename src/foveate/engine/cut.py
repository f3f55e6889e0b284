"""One cut: show the method its visual tokens, take its choice, shorten the sequence."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from foveate.engine.forward_pass import Frame, Prompt, StageRecord
from foveate.pruners.base import Pruner, VisualTokens
from foveate.tensors import align_right, gather_positions, to_device


def cut(
    hidden: Tensor, frame: Frame, prompt: Prompt, pruner: Pruner, layer: int, last: bool, always: bool, shown: Tensor
) -> tuple[Tensor, bool]:
    """Shorten `hidden` (..., B, n, D) to what `pruner` keeps before `layer`.

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
    watch = stopwatch(hidden.device)
    places = frame.places(shown.shape[0], hidden.device)
    visual = _padded(prompt.visual, frame.extra).gather(1, places)
    if frame.alive is not None:
        visual = visual & frame.alive
    columns = torch.argsort((~visual).to(torch.uint8), dim=-1, stable=True)[:, : max(prompt.counts)]
    with torch.no_grad():
        tokens = _show(shown.detach(), frame, prompt, layer, places, columns, visual)
        keep = pruner.select(tokens)
    if keep.dtype != torch.bool or keep.shape != tokens.valid.shape:
        raise TypeError(
            f"{type(pruner).__name__}.select must return a bool mask of shape {tuple(tokens.valid.shape)}, "
            f"got {keep.dtype} of shape {tuple(keep.shape)}"
        )
    keep = keep & tokens.valid
    short = [count < pruner.min_visual for count in prompt.record.visual]
    if any(short):
        keep = keep | (tokens.valid & to_device(torch.tensor(short), keep.device)[:, None])
    elapsed = watch()
    kept = _count(keep, pruner, tokens, short)
    prompt.record.stages.append(StageRecord(layer, tokens.position, tokens.image, keep, kept, elapsed))
    leaving = frame.extra if last else 0
    if kept == prompt.counts and not leaving and not always:
        return hidden, False
    stay = torch.zeros_like(visual).scatter(1, columns, keep) | _others(frame, prompt, places, visual, leaving)
    lengths = [text + visible + frame.extra - leaving for text, visible in zip(prompt.record.text, kept, strict=True)]
    picked = align_right(stay, max(lengths))
    left = places.gather(1, picked)
    alive = None
    if min(lengths) != max(lengths):
        alive = stay.gather(1, picked)
        left = left.masked_fill(~alive, 0)  # any place will do, but one that every tensor has
    prompt.counts, prompt.record.stages[-1].length = kept, max(lengths) - (frame.extra - leaving)
    frame.extra -= leaving
    frame.cut(left, alive)
    return gather_positions(hidden, picked, -2), True


def _show(
    hidden: Tensor, frame: Frame, prompt: Prompt, layer: int, places: Tensor, columns: Tensor, visual: Tensor
) -> VisualTokens:
    """The method's view of the tokens in `columns` (B, N)."""
    valid = visual.gather(1, columns)
    position = places.gather(1, columns)
    image, grid, row, column = (
        _padded(one, frame.extra).gather(1, position).masked_fill(~valid, -1) for one in prompt.layout.places
    )
    query = (places == prompt.query[:, None]).to(torch.uint8).argmax(-1)
    # up to the question's end: an answer that is scored with labels is not there yet while generating
    text = _others(frame, prompt, places, visual, frame.extra) & (places <= prompt.query[:, None])
    text = text.to(hidden.dtype)
    features = gather_positions(hidden, columns, 1)
    attention = frame.attention
    if attention is not None:
        attention = attention[..., -places.shape[1] :].to(hidden.device)
        picked = columns[:, None, None].expand(-1, attention.shape[1], attention.shape[2], -1)
        attention = attention.gather(3, picked).masked_fill(~valid[:, None, None], 0)
        frame.attention = None
    seen, blocks = prompt.vision, 0 if prompt.vision is None else prompt.vision.blocks
    vision = () if seen is None else seen.at(position.masked_fill(~valid, -1))
    return VisualTokens(
        layer=layer,
        features=features if min(prompt.counts) == max(prompt.counts) else features.masked_fill(~valid[..., None], 0),
        valid=valid,
        dense=torch.tensor(prompt.record.visual),
        present=torch.tensor(prompt.counts),
        position=(position + frame.past).masked_fill(~valid, -1),
        image=image,
        grid=grid,
        row=row,
        column=column,
        grids=prompt.layout.grids,
        grids_known=prompt.layout.known,
        query=gather_positions(hidden, query[:, None], 1)[:, 0],
        mean_text=torch.einsum("bn,bnd->bd", text, hidden) / text.sum(-1, keepdim=True).clamp(min=1),
        attention=attention,
        extra=hidden[:, hidden.shape[1] - frame.extra :],
        vision=vision[:blocks],
        received=tuple(one[..., 0] for one in vision[blocks:]),
    )


def _count(keep: Tensor, pruner: Pruner, tokens: VisualTokens, short: list[bool]) -> list[int]:
    """How many tokens of each sample `keep` keeps; a wait for the device unless the method knows."""
    known = pruner.kept(tokens.layer, tokens.dense, tokens.present)
    if known is None:
        return keep.sum(-1).tolist()
    told = torch.where(torch.tensor(short), tokens.present, known).tolist()
    if keep.device.type == "cpu" and keep.sum(-1).tolist() != told:  # free here, and what follows relies on it
        raise RuntimeError(f"{type(pruner).__name__}.kept says {told}, select kept {keep.sum(-1).tolist()}")
    return told


def text_rows(frame: Frame, prompt: Prompt, places: Tensor) -> Tensor:
    """(B, T) rows of the text tokens between the first visual token and the prompt's end; -1 where there are fewer.

    Parameters
    ----------
    places
        (B, n) places in the dense prompt of the rows that are there.
    """
    visual = _padded(prompt.visual, frame.extra).gather(1, places)
    behind = _padded(prompt.visual.cumsum(-1) > 0, frame.extra, True).gather(1, places)
    text = _others(frame, prompt, places, visual, frame.extra) & behind & (places <= prompt.query[:, None])
    rows = torch.argsort((~text).to(torch.uint8), dim=-1, stable=True)[:, : max(prompt.record.text)]
    return rows.masked_fill(~text.gather(1, rows), -1)


def _others(frame: Frame, prompt: Prompt, places: Tensor, visual: Tensor, leaving: int) -> Tensor:
    """(B, n) bool, everything but visual tokens, padding and the method's own tokens that leave."""
    others = ~visual
    if frame.alive is not None:
        others = others & frame.alive
    if prompt.real is not None:
        others = others & _padded(prompt.real, frame.extra, True).gather(1, places)
    return others & (places < frame.length) if leaving else others


def _padded(tensor: Tensor, extra: int, value: float = False) -> Tensor:
    """(B, L) tensor made long enough for the method's own tokens."""
    return torch.nn.functional.pad(tensor, (0, extra), value=value) if extra else tensor


def stopwatch(device: torch.device) -> Callable[[], Callable[[], float]]:
    """Start measuring; the answer stops it and gives a function that tells the milliseconds without a sync now."""
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


def at_dense_length(hidden: Tensor, frame: Frame) -> Tensor:
    """(B, L, D) of the states (B, n, D) that are left, zero where a token was dropped; without added tokens.

    Where the decoder went on with the last places only, as many as those.
    """
    frame.follow(hidden)
    index = frame.places(hidden.shape[0], hidden.device)
    alive = frame.alive if frame.alive is not None else torch.ones_like(index, dtype=torch.bool)
    batch = torch.arange(hidden.shape[0], device=hidden.device)[:, None].expand_as(index)
    length = frame.length if frame.newest is None else frame.newest
    full = hidden.new_zeros(hidden.shape[0], length, hidden.shape[-1])
    return full.index_put((batch[alive], index[alive] - (frame.length - length)), hidden[alive])


def add_features(hidden: Tensor, frame: Frame, number: int) -> Tensor:
    """(B, n, D) states behind layer `number`, with what the family adds there to the visual tokens that are left."""
    if frame.additions is None:
        return hidden
    frame.follow(hidden)
    mask = frame.additions.mask.to(hidden.device)
    value = frame.additions.values[number].to(hidden.device, hidden.dtype)
    if frame.index is not None:
        rank = (mask.flatten().cumsum(0) - 1).view_as(mask)
        inside = frame.index.clamp(max=frame.length - 1)
        there = frame.index < frame.length
        if frame.alive is not None:
            there = there & frame.alive
        mask = mask.gather(1, inside) & there
        value = value[rank.gather(1, inside)[mask]]
    hidden = hidden.clone()
    hidden[mask, :] = hidden[mask, :] + value
    return hidden
