"""Facts about a prompt: where the question ends, which image a visual token belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.engine.frame import Frame, PrefillRecord, Prompt
from foveate.families import Family, Parts, visual_mask


def read_prompt(
    kwargs: Mapping[str, Any], labels: Tensor | None, family: Family, parts: Parts, config: Any
) -> Frame | None:
    """The frame of a forward pass of the base model; None if it has no tokens (the model says what it misses).

    Parameters
    ----------
    kwargs
        Arguments of the base model's forward.
    labels
        (B, L) of the whole model's forward, or None.
    """
    tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if tokens is None:
        return None
    frame = Frame(length=tokens.shape[1])
    visual = visual_mask(parts, kwargs)
    if visual is None:
        return frame
    mask, real = kwargs.get("attention_mask"), None
    if isinstance(mask, Tensor) and mask.ndim == 2:
        real = mask[:, -frame.length :].bool()
        visual = visual & real
    query = last_prompt_token(frame.length, real, labels, tokens)
    # The last prompt token speaks the answer's first word: it stays, even if it is part of an image.
    before = visual & (torch.arange(frame.length, device=visual.device) < query[:, None])
    lengths = torch.full_like(query, frame.length) if real is None else real.sum(-1)
    # one host sync a prefill
    everywhere, counts, present = torch.stack([visual.sum(-1), before.sum(-1), lengths]).tolist()
    frame.record = PrefillRecord([number - count for number, count in zip(present, counts, strict=True)], counts, None)
    if not any(counts):
        frame.record.skipped = "no visual token in the prompt"
        return frame
    image = number_images(visual, everywhere, family.image_lengths(config, kwargs, sum(everywhere)))
    frame.record.image = image = image.masked_fill(~before, -1)
    frame.prompt = Prompt(before, image, real, query, counts, frame.record)
    return frame


def last_prompt_token(length: int, prompt: Tensor | None, labels: Tensor | None, tokens: Tensor) -> Tensor:
    """(B,) place of the last prompt token.

    With labels (training, scoring an answer) the prompt ends before the first label: the same token that is last
    while generating, so that both choose the same visual tokens.

    Parameters
    ----------
    prompt
        (B, L) bool, real tokens; None: all.
    labels
        (B, L), -100 on the prompt; or None.
    tokens
        (B, L, …), for the batch size and device.
    """
    place = torch.arange(length, device=tokens.device)
    last = torch.full((tokens.shape[0],), length - 1, device=tokens.device)
    if prompt is not None:
        last = (place * prompt).amax(-1)
    if labels is not None and labels.shape == tokens.shape[:2]:
        answer = labels.to(tokens.device) != -100
        first = torch.where(answer, place, length).amin(-1)
        last = torch.where((first > 0) & (first < length), first - 1, last)
    return last


def number_images(visual: Tensor, counts: list[int], lengths: list[int] | None) -> Tensor:
    """(B, L) long, which image of its sample each visual token belongs to, from 0; -1 elsewhere.

    Parameters
    ----------
    visual
        (B, L) bool.
    counts
        Visual tokens of each row.
    lengths
        Visual tokens of each image in prompt order over the batch. None, or lengths that do not add up (beams repeat
        the rows but not the images): each unbroken run of visual tokens is an image.
    """
    ends = _image_ends(counts, lengths)
    if ends is None:
        start = visual & ~torch.nn.functional.pad(visual, (1, 0))[:, :-1]
        number = start.long().cumsum(-1) - 1
    else:
        rank = visual.long().cumsum(-1) - 1
        table = torch.tensor(ends, device=visual.device)
        number = torch.searchsorted(table, rank.contiguous(), right=True)
    return number.masked_fill(~visual, -1)


def _image_ends(counts: list[int], lengths: list[int] | None) -> list[list[int]] | None:
    """For each row the number of visual tokens after each of its images; rows padded with a number beyond all."""
    if lengths is None or not sum(lengths):
        return None
    repeats, rest = divmod(sum(counts), sum(lengths))
    if rest or len(counts) % repeats:
        return None
    rows, image = [], iter(lengths)
    for count in counts[::repeats]:
        ends = [0]
        while ends[-1] < count:
            ends.append(ends[-1] + next(image, count + 1))
        if ends[-1] != count:
            return None
        rows += [ends[1:]] * repeats
    most = max(map(len, rows))
    beyond = max(counts) + 1
    return [row + [beyond] * (most - len(row)) for row in rows]
