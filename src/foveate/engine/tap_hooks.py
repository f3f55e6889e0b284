"""Hooks on the layer before a stage: the attention rows, keys, values and hidden states that the method asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import StaticLayer

from foveate.engine.attachment import Attachment
from foveate.engine.attention_rows import attention_rows, attention_tap, summed_rows
from foveate.engine.cache import cache_layer
from foveate.engine.cut import text_rows
from foveate.engine.forward_pass import ForwardPass, Prompt, Tapped
from foveate.errors import UnsupportedModelError
from foveate.pruners.base import PromptRows


class TapHooks:
    """Around the layer before each stage."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment

    def before_layer(self, number: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        """Open a tap on the attention of layer `number` for what the stage before the next layer wants."""
        here, forward = self.attachment, self.attachment.forward
        if forward is None or forward.prompt is None:
            return
        # 1. what the method wants of this layer
        method, stage = here.method.member(number + 1), number + 1
        given = here.names.by_name(number, args, kwargs)
        hidden, cache = here.family.shown_states(given[here.names.hidden]), given.get(here.names.cache)
        forward.follow(hidden)
        tapped = forward.tapped = Tapped(previous=hidden.detach() if method.wants_previous(stage) else None)
        if method.wants_rotary(stage):
            tapped.rotary = turns(given.get(here.names.rotary), hidden.shape[1], method.name)
        rows = method.attention_rows(stage, prompt_rows(forward, forward.prompt, hidden))
        wanted, attention = method.kv(stage), here.parts.attention[number]
        if attention is None or (rows is None and not wanted):
            return
        cached = None if cache is None else cache_layer(cache, number)

        # 2. read it where the layer computes it
        def listen(query: Tensor, key: Tensor, value: Tensor, mask: Any, options: dict) -> None:
            if here.forward is not forward:  # that forward pass is over: it was interrupted
                return
            now = query.shape[2]
            with torch.no_grad():
                if isinstance(cached, StaticLayer):  # what comes after the tokens is free
                    end = int(cached.cumulative_length) if forward.past else now
                    key, value = key[:, :, :end], value[:, :, :end]
                if rows is not None:
                    read = summed_rows if method.sums_rows(stage) else attention_rows
                    tapped.attention = read(query, key, mask, options, rows.to(query.device), method.attention_form())
                tapped.keys = key[:, :, -now:].detach() if "keys" in wanted else None
                tapped.values = value[:, :, -now:].detach() if "values" in wanted else None

        forward.tap.enter_context(attention_tap(attention, listen))

    def after_layer(self, layer: nn.Module, args: tuple, output: Any) -> None:
        """Close the tap, also where the layer failed."""
        forward = self.attachment.forward
        if forward is not None:
            forward.tap.close()


def turns(tables: Any, number: int, method: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines (1 or B, n, E) in what a layer is given of rotary positions, for its `number` of tokens.

    Raises
    ------
    UnsupportedModelError
        When they are not there in a form that is known.
    """
    if isinstance(tables, Tensor) and tables.is_complex():
        tables = (tables.real, tables.imag)
    pair = tables if isinstance(tables, (tuple, list)) else ()
    if len(pair) != 2 or any(one.ndim < 3 or one.shape[-2] != number for one in pair):
        raise UnsupportedModelError(f"{method} reads rotary positions, which this model does not give its layers")
    # one table for each axis of positions, as an older transformers has them: their mean
    cos, sin = (one.detach().flatten(0, -4).mean(0) if one.ndim > 3 else one.detach() for one in pair)
    return cos, sin


def prompt_rows(forward: ForwardPass, prompt: Prompt, hidden: Tensor) -> PromptRows:
    """The rows of `hidden` (B, n, D) that a method may ask attention for."""
    batch, number = hidden.shape[:2]
    dense_positions = forward.dense_positions(batch, hidden.device)
    last = (dense_positions == prompt.query[:, None]).to(torch.uint8).argmax(-1)
    extra = torch.arange(number - forward.extra, number, device=hidden.device)
    return PromptRows(last, extra.expand(batch, -1), text_rows(forward, prompt, dense_positions))
