"""Hooks on the decoder layers: stages, arguments for the tokens that are there, KV caches, the method's own tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from foveate.engine.attachment import Attachment
from foveate.engine.cache import AnyPrunedLayer, PrunedStaticLayer, cache_layer, check_cache, compact, pruned_layer
from foveate.engine.compat import takes_flat_masks
from foveate.engine.cut import add_features, cut, stopwatch
from foveate.engine.forward_pass import ForwardPass, Prompt
from foveate.engine.layer_inputs import pick_inputs, pick_state_inputs, row_scale
from foveate.tensors import table_length

SCALE = "foveate_row_scale"  # what a layer is given to hand on to its attention


class LayerHooks:
    """Around each decoder layer, from the first that pruning touches."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment

    def before_stage(self, number: int, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """`before_layer`, timed: time not spent selecting counts as compaction."""
        here, forward = self.attachment, self.attachment.forward
        if forward is None or forward.prompt is None:
            return self.before_layer(number, layer, args, kwargs)
        stages = forward.prompt.record.stages
        watch, cuts = stopwatch((args[0] if args else kwargs[here.names.hidden]).device), len(stages)
        picked = self.before_layer(number, layer, args, kwargs)
        if len(stages) > cuts:
            stages[-1].passed = watch()
        return picked

    def before_layer(self, number: int, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Cut if this is a stage, and give the layer its arguments for the tokens that are there."""
        here, forward = self.attachment, self.attachment.forward
        if forward is None:
            return None
        names = here.names
        given = names.by_name(number, args, kwargs)
        hidden, cache = given[names.hidden], given.get(names.cache)
        forward.cache = cache
        forward.follow(hidden)
        if forward.prompt is None and forward.kept is None and cache is not None and not isinstance(cache, Cache):
            return None  # the paged cache of continuous batching, paused: with a prompt to prune it was refused
        # 1. the hidden states: the method's own tokens come, visual tokens leave
        hidden = self._with_own_tokens(number, hidden, forward)
        if number in here.stages and forward.prompt is not None and any(forward.prompt.counts):
            if cache is not None:
                check_cache(cache, here.depth, here.readers)
            hidden = self._run_stage(number, hidden, cache, forward, forward.prompt)
        if forward.extra and here.extra is not None and 0 < number < len(here.extra):
            hidden = _add_rows(hidden, here.extra[number].to(hidden))
        # 2. the other arguments: only what is there, and the cache layer is told what comes
        picked = self._pick(number, given, hidden, cache, forward)
        if picked is None:
            return None
        # 3. by place what came by place: reentrant gradient checkpointing cuts the graph there, and at no keyword
        del picked[names.hidden]
        return (hidden, *(picked.pop(name) for name in names.layer[number][1 : len(args)])), picked

    def _with_own_tokens(self, number: int, hidden: Tensor, forward: ForwardPass) -> Tensor:
        """Before the first layer, the hidden states with the method's own tokens after them."""
        extra = self.attachment.extra
        if number or not forward.extra or extra is None:
            return hidden
        hidden = torch.cat([hidden, extra[0].to(hidden).expand(hidden.shape[0], -1, -1)], 1)
        forward.shorten(torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1), None)
        return hidden

    def _pick(
        self, number: int, given: dict[str, Any], hidden: Tensor, cache: Any, forward: ForwardPass
    ) -> dict[str, Any] | None:
        """The layer's arguments for the rows of `hidden`; None where they are right as they are."""
        here, names = self.attachment, self.attachment.names
        source = here.sources[number]
        cached = None if cache is None else cache_layer(cache, source)
        if here.parts.attention[number] is None:
            return pick_state_inputs(given, names, forward, hidden)
        if hidden.shape[-2] == 1 and isinstance(cached, PrunedStaticLayer):
            return None  # `static_step` sees to it
        if forward.kept is None and not isinstance(cached, AnyPrunedLayer):
            return None
        batch, tables = hidden.shape[-3], given.get(names.rotary)
        if tables is not None and forward.newest is None and table_length(tables) < forward.length:
            forward.keep_last(table_length(tables), batch, hidden.device)
        if source != number:
            cached = None
        elif cached is not None:
            cached = pruned_layer(cache, number, batch, hidden.device)
        flat = forward.once("flat", None, lambda: takes_flat_masks(here.text_config))
        read = None if source == number else forward.keys[source]
        tokens = here.family.token_inputs
        picked, keys = pick_inputs(given, names, forward, hidden, cached, here.group[number], flat, tokens, read)
        if number in here.read:
            forward.keys[number] = keys
        if number in here.scales:
            picked[SCALE] = row_scale(forward, here.scales[number], keys.past)
        return picked

    def _run_stage(self, number: int, hidden: Tensor, cache: Any, forward: ForwardPass, prompt: Prompt) -> Tensor:
        """The stage before layer `number`, and what it means for the caches of the layers before."""
        here, extra = self.attachment, forward.extra
        last, shown = number == here.stages[-1], here.family.shown_states(hidden)
        method = here.method.member(number)
        hidden, gathered = cut(hidden, forward, prompt, method, number, last, here.always_gather, shown)
        removed = extra - forward.extra
        if not gathered or cache is None or not (here.method.compact_cache or removed):
            return hidden
        dense_positions = forward.dense_positions(len(shown), hidden.device)
        end = forward.past + forward.length
        survivors = torch.ones(len(shown), end + extra, dtype=torch.bool, device=hidden.device)
        lengths = None  # what stays in a cache, where the host knows
        if removed:
            survivors[:, end:] = False
        if here.method.compact_cache:
            survivors[:, forward.past :] = False
            positions = forward.in_conversation(dense_positions, forward.past)
            survivors |= torch.zeros_like(survivors).scatter(1, positions.clamp(min=0), positions >= 0)
            prompt.record.compacted = number
            if not forward.past:
                lengths = [
                    sum(counts) + forward.extra for counts in zip(prompt.record.text, prompt.counts, strict=True)
                ]
        compact(cache, here.group[:number], survivors, lengths)
        return hidden

    def after_layer(self, number: int, layer: nn.Module, args: tuple, output: Any) -> Any:
        """Add what the family adds to visual tokens after this layer (deep-stack features)."""
        forward = self.attachment.forward
        if forward is None or forward.additions is None or number >= len(forward.additions.values):
            return None
        hidden = add_features(output[0] if isinstance(output, tuple) else output, forward, number)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def before_rotary(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Before the rotary tables are made: positions for the method's own tokens, too."""
        forward = self.attachment.forward
        if forward is None or not forward.extra:
            return None
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": _with_own(forward, kwargs["position_ids"])}
        return (args[0], _with_own(forward, args[1]), *args[2:]), kwargs

    def take_scale(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Before an attention: take what `row_scale` gave the layer to hand on.

        Gradient checkpointing keeps it for when the layer runs again.
        """
        self.attachment.thread.scale = kwargs.get(SCALE)
        return args, {name: value for name, value in kwargs.items() if name != SCALE}

    def scale_rows(self, module: nn.Module, args: tuple, rows: Tensor) -> Tensor | None:
        """After the map whose rows an attention scales by their number: by their position instead."""
        thread = self.attachment.thread
        scale, thread.scale = getattr(thread, "scale", None), None
        return None if scale is None else rows * scale[..., None].to(rows)


def _with_own(forward: ForwardPass, position_ids: Tensor) -> Tensor:
    """Position ids with those of the method's own tokens in front: a decoder may cut the tables to the last."""
    return forward.continued(position_ids).roll(forward.extra, -1)


def _add_rows(hidden: Tensor, rows: Tensor) -> Tensor:
    """`hidden` (B, n, D) with `rows` (G, D) added to its last ones; in place where no gradient is wanted."""
    if torch.is_grad_enabled():
        return torch.cat([hidden[:, : -len(rows)], hidden[:, -len(rows) :] + rows], 1)
    hidden[:, -len(rows) :] += rows
    return hidden
