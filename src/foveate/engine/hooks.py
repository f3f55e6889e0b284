"""The hooks: where the engine meets a model. They know no method and no family by name."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticLayer

from foveate.engine.arguments import cache_of, find_arguments, refuse_unknown_cache
from foveate.engine.attention_rows import attention_rows, attention_tap
from foveate.engine.cache import (
    AnyPrunedLayer,
    PrunedStaticLayer,
    cache_layer,
    check_cache,
    check_lengths,
    compact,
    lengths_held,
    pruned_layer,
)
from foveate.engine.compat import (
    NOTE,
    check_backend,
    guard_method,
    hooks_around_checkpoints,
    in_python,
    refuse_chunks,
    refuse_continuous_batching,
    run_as_python,
    set_compiled_aside,
    takes_flat_masks,
)
from foveate.engine.cut import add_features, at_dense_length, cut, stopwatch, text_rows
from foveate.engine.forward_pass import Frame, PrefillRecord, Prompt
from foveate.engine.layer_inputs import check_method, pick_inputs, pick_state_inputs, row_scale, static_step
from foveate.engine.prompt import LABELLED, read_prompt
from foveate.engine.shared_kv import check_stages
from foveate.engine.vision_features import VisionRecorder, vision_recorder
from foveate.errors import BudgetError, UnsupportedCacheError, UnsupportedModelError
from foveate.families import Family
from foveate.families.vision_encoder import keep_sizes
from foveate.pruners.base import PromptRows, Pruner
from foveate.tensors import table_length

UNKNOWN_LAYOUT = (
    "where the visual tokens lie in their images is unknown here; each image was taken for one row of tokens"
)
TYPES = "mm_token_type_ids"
SCALE = "foveate_row_scale"  # what a layer is given to hand on to its attention
REPLICA = (
    "DataParallel runs copies of the model, which a pruner cannot be attached to: use one process for each device, or "
    "device_map"
)
ADDED_STREAMS = (
    "{}: it adds tokens to the prompt, of which this model's layers would want several states (AltUp) that the method "
    "does not have"
)
PROPOSALS = (
    "{} takes tokens out of the KV cache of the layers before its stage, which proposed words would have seen: "
    "assisted decoding and prompt lookup need compact_cache=False and a method that adds no tokens"
)
PAUSED = "the pruner was paused"
TOO_SHORT = "{} visual tokens are fewer than min_visual={}: so few run dense"
PRUNED_WHILE_PAUSED = (
    "this KV cache was pruned and cannot be used while its pruner is paused: go on with it outside of paused(), or "
    "pass the whole conversation with a new cache"
)


class Hooks:
    """Hooks of one pruner on one model; `remove` takes them all off again."""

    def __init__(
        self,
        model: nn.Module,
        pruner: Pruner,
        family: Family,
        always_gather: bool = False,
        held: nn.Module | None = None,  # what the user has in hand: the model, or a wrapper around it
    ) -> None:
        self.model, self.pruner, self.family, self.always_gather = model, pruner, family, always_gather
        self.parts = family.parts(model)
        self.names = find_arguments(self.parts)
        self.config: Any = model.config
        self.text_config: Any = self.parts.decoder.config
        self.depth = len(self.parts.layers)
        self.sources = family.kv_sources(self.parts)
        self.readers = {number for number, source in enumerate(self.sources) if source != number}
        self.read = {self.sources[number] for number in self.readers}
        self.method = pruner.resolved(self.config)
        self.stages = tuple(self.method.layers(self.depth))
        if list(self.stages) != sorted({*self.stages} & {*range(self.depth)}):
            raise BudgetError(
                f"{pruner.name}: stages must be layers of 0 to {self.depth - 1}, ascending, got {self.stages}"
            )
        check_stages(pruner.name, self.stages, self.sources)
        self.notes = self.method.notes(self.depth)
        self.extra = self.method.extra_tokens(model)
        if self.extra is not None and self.extra.ndim == 2:
            self.extra = self.extra[None]
        check_method(self.method, self.stages, self.parts.attention, self.extra)
        if self.extra is not None and family.has_streams:
            raise UnsupportedModelError(ADDED_STREAMS.format(pruner.name))
        self.vision: VisionRecorder | None = vision_recorder(model, self.method, family)
        self.records: list[PrefillRecord] = []
        self.thread = threading.local()
        self.paused = False
        self.group = [sum(stage <= layer for stage in self.stages) for layer in range(self.depth)]
        self.base_takes = inspect.signature(self.parts.base.forward).parameters
        self.scales: dict[int, Callable[[Tensor], Tensor]] = {}
        self.handles: list[Any] = []
        self.undo: list[Callable[[], None]] = []
        try:
            self.undo += set_compiled_aside(model if held is None else held)
            if self.undo:
                self.notes = (*self.notes, NOTE)
            self.undo.append(run_as_python(model, self._before_model))
            self.undo.append(refuse_chunks(model, self.parts.visual_ids, lambda: not self.paused))
            self.undo += refuse_continuous_batching(model, lambda: not self.paused)
            self.undo.append(guard_method(model, "_get_candidate_generator", self._before_proposals))
            self._register()
        except BaseException:
            self.remove()
            raise

    def _register(self) -> None:
        parts = self.parts
        if self.model is not parts.base:
            self._before(self.model, self._refuse_replica)
        self._before(parts.base, self._before_base)
        self._after(parts.base, self._after_base, always_call=True)
        self._before(parts.decoder, self._before_decoder)
        self._after(parts.decoder, self._after_decoder)
        if self.extra is not None:
            for rotary in (parts.rotary, *parts.more_rotary):
                self._before(rotary, self._before_rotary)
        if self.vision is not None:
            self.handles += self.vision.register()
        if self.family.wants_sizes:
            encoder = self.family.vision_parts(self.model).encoder
            self.handles.append(encoder.register_forward_hook(in_python(self._keep_sizes), with_kwargs=True))
        cuts_cache = self.pruner.compact_cache or self.extra is not None
        first = 0 if cuts_cache else min(self.stages, default=self.depth)
        for number, layer in enumerate(parts.layers):
            if number >= first:
                before = self._before_stage if number in self.stages else self._before_layer
                self._before(layer, partial(before, number))
                step = partial(static_step, number, self.names)
                self.handles.append(layer.register_forward_pre_hook(step, with_kwargs=True))
            self._register_scale(number)
            if number + 1 in self.stages:
                self._before(layer, partial(self._open_tap, number))
                self._after(layer, self._close_tap, always_call=True)
            if self.family.has_additions:
                self._after(layer, partial(self._add_features, number))

    def _register_scale(self, number: int) -> None:
        """For an attention that scales its rows by their number: see `Family.scaled_rows`."""
        attention = self.parts.attention[number]
        scaled = None if attention is None else self.family.scaled_rows(attention)
        if attention is not None and scaled is not None and number >= min(self.stages, default=self.depth):
            self.scales[number] = scaled[1]
            self._before(attention, self._take_scale)
            self._after(scaled[0], self._scale_rows)

    def _before(self, module: nn.Module, hook: Callable) -> None:
        self.handles.append(module.register_forward_pre_hook(in_python(hook), with_kwargs=True))

    def _after(self, module: nn.Module, hook: Callable, always_call: bool = False) -> None:
        self.handles.append(module.register_forward_hook(in_python(hook), always_call=always_call))

    def remove(self) -> None:
        """Take every hook off."""
        while self.handles:
            self.handles.pop().remove()
        while self.undo:
            self.undo.pop()()
        if self.vision is not None:
            self.vision.close()

    def __reduce__(self) -> Any:
        raise UnsupportedModelError(
            "a model cannot be copied or pickled while a pruner is attached to it: detach first"
        )

    @property
    def frame(self) -> Frame | None:
        """This thread's forward pass."""
        return getattr(self.thread, "frame", None)

    # -- what a forward pass is about

    def _refuse_replica(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module is not self.model:
            raise UnsupportedModelError(REPLICA)

    def _before_proposals(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> None:
        """An assistant's words come with the prompt in one forward pass: the question ends before them.

        They are read with it, so that they would still find in the first layers what is taken out of those afterwards.
        """
        ids = torch.tensor(self.parts.visual_ids, device=input_ids.device)
        takes_out = self.pruner.compact_cache or self.extra is not None
        prunes = takes_out and getattr(self.pruner, "keep", None) != 1.0 and not self.paused
        if prunes and bool(torch.isin(input_ids, ids).any()):
            raise UnsupportedModelError(PROPOSALS.format(self.pruner.name))
        self.thread.asked = input_ids if len(input_ids) == 1 else None  # transformers refuses more, after this

    def _before_model(self, kwargs: Mapping[str, Any]) -> None:
        self.thread.labels = kwargs.get("labels")

    def _before_base(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        labels, self.thread.labels = getattr(self.thread, "labels", None), None
        if module is self.model:  # one that calls its decoder itself: `_before_model` comes after this
            labels = kwargs.get("labels")
        asked, self.thread.asked = getattr(self.thread, "asked", None), None
        self.thread.frame = None
        given = {"input_ids": args[0], **kwargs} if args else kwargs
        self.thread.frame = read_prompt(given, labels, self.family, self.parts, self.config, asked)
        reason = PAUSED if self.paused else self._too_short()
        if reason is not None:
            self._run_dense(reason)
        if TYPES in kwargs and TYPES not in self.base_takes:  # told for us: the model would hand it on to every layer
            return args, {name: value for name, value in kwargs.items() if name != TYPES}
        return None

    def _too_short(self) -> str | None:
        """Why this prompt is left alone for its length; None if it is not, or if a sample of the batch is longer."""
        frame, least = self.frame, self.pruner.min_visual
        if frame is None or frame.prompt is None or max(frame.prompt.counts) >= least:
            return None
        return TOO_SHORT.format(max(frame.prompt.counts), least)

    def _run_dense(self, reason: str) -> None:
        """Let this forward pass run as if nothing were attached, but for its entry in the report."""
        if self.frame is not None and self.frame.prompt is not None:
            self.frame.prompt.record.skipped, self.frame.prompt = reason, None
            if self.vision is not None:
                self.vision.forget(failed=True)

    def _after_base(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.vision is not None and (output is None or self._took_images()):
            self.vision.forget(failed=output is None)
        if self.frame is not None:
            self.frame.tap.close()
            self.frame.whole.close()
            self.thread.frame = None

    def _took_images(self) -> bool:
        """Whether this forward pass was a prefill with images, pruned or not."""
        frame = self.frame
        if frame is None or frame.prompt is not None:
            return frame is not None
        return frame.record is not None and frame.record.skipped == LABELLED

    def _before_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        frame = self.frame
        if frame is None:
            return None
        cache = cache_of(kwargs)
        pruned = any(isinstance(layer, AnyPrunedLayer) for layer in getattr(cache, "layers", ()))
        if self.paused and pruned:
            raise UnsupportedCacheError(PRUNED_WHILE_PAUSED)
        if frame.prompt is not None:
            refuse_unknown_cache(kwargs)
            if cache is not None:
                check_cache(cache, self.depth, self.readers)
                frame.held = lengths_held(cache, self.depth)
        if frame.length > 1:
            check_backend(self.text_config, frame, cache, pruned)
        if frame.prompt is None:
            text_only = frame.record is not None and not any(frame.record.visual)
            if text_only and cache is not None and int(cache.get_seq_length()):
                frame.record = None  # a later turn without an image is not a prefill
            return None
        if cache is not None:
            frame.past = int(cache.get_seq_length())
        if self.vision is not None:
            frame.prompt.vision = self.vision.take(frame.prompt, kwargs["inputs_embeds"], cache)
        frame.prompt.record.notes += self.notes
        if self.pruner.uses_grids and not frame.prompt.layout.known:
            frame.prompt.record.notes.append(UNKNOWN_LAYOUT)
        if self.extra is not None:
            frame.extra = self.extra.shape[1]
        frame.whole.enter_context(hooks_around_checkpoints(self.parts.layers))
        kwargs, frame.additions = self.family.take_additions(kwargs)
        return args, kwargs

    def _after_decoder(self, module: nn.Module, args: tuple, output: Any) -> Any:
        frame = self.frame
        if frame is None:
            return None
        if frame.record is not None:
            self.records.append(frame.record)
        if frame.index is None:
            return None
        if frame.prompt is not None:
            cache = cache_of(output)
            training = module.training and torch.is_grad_enabled()
            held = frame.held or [0] * self.depth
            check_lengths(frame.cache if cache is None else cache, held, self._left(frame), training)
        full = at_dense_length(output[0], frame)
        if isinstance(output, tuple):
            return (full, *output[1:])
        output["last_hidden_state"] = full
        return output

    def _left(self, frame: Frame) -> list[int | None]:
        """Tokens of this prefill that the report leaves to each layer's cache; None where earlier turns count in."""
        rows, now = [], frame.length
        stages = {} if frame.record is None else {stage.layer: stage.length for stage in frame.record.stages}
        for layer in range(self.depth):
            now = stages.get(layer) or now
            rows.append(now)
        compacted = 0 if frame.record is None else frame.record.compacted
        left = None if frame.past else rows[compacted]
        held = [left if layer < compacted else count for layer, count in enumerate(rows)]
        return [None if layer in self.readers else count for layer, count in enumerate(held)]

    def _keep_sizes(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        keep_sizes(output, self.family.vision_sizes(args, kwargs))

    # -- tokens that the method adds

    def _before_rotary(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        frame = self.frame
        if frame is None or not frame.extra:
            return None
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": self._with_extra(frame, kwargs["position_ids"])}
        return (args[0], self._with_extra(frame, args[1]), *args[2:]), kwargs

    @staticmethod
    def _with_extra(frame: Frame, position_ids: Tensor) -> Tensor:
        """Position ids with those of the method's own tokens in front: a decoder may cut the tables to the last."""
        return frame.continued(position_ids).roll(frame.extra, -1)

    def _add_features(self, number: int, layer: nn.Module, args: tuple, output: Any) -> Any:
        frame = self.frame
        if frame is None or frame.additions is None or number >= len(frame.additions.values):
            return None
        hidden = add_features(output[0] if isinstance(output, tuple) else output, frame, number)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    # -- queries that an attention scales by the number of their row

    def _take_scale(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Take what `row_scale` gave the layer to hand on: gradient checkpointing keeps it for when it runs again."""
        self.thread.scale = kwargs.get(SCALE)
        return args, {name: value for name, value in kwargs.items() if name != SCALE}

    def _scale_rows(self, module: nn.Module, args: tuple, rows: Tensor) -> Tensor | None:
        scale, self.thread.scale = getattr(self.thread, "scale", None), None
        return None if scale is None else rows * scale[..., None].to(rows)

    # -- attention rows

    def _open_tap(self, number: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        frame = self.frame
        if frame is None or frame.prompt is None:
            return
        given = self.names.by_name(number, args, kwargs)
        hidden, cache = self.family.shown_states(given[self.names.hidden]), given.get(self.names.cache)
        frame.follow(hidden)
        places = frame.places(hidden.shape[0], hidden.device)
        last = (places == frame.prompt.query[:, None]).to(torch.uint8).argmax(-1)
        extra = torch.arange(hidden.shape[1] - frame.extra, hidden.shape[1], device=hidden.device)
        text = text_rows(frame, frame.prompt, places)
        rows = self.method.attention_rows(number + 1, PromptRows(last, extra.expand(hidden.shape[0], -1), text))
        attention = self.parts.attention[number]
        if rows is None or attention is None:
            return

        cached = None if cache is None else cache_layer(cache, number)

        def listen(query: Tensor, key: Tensor, mask: Any, options: dict) -> None:
            with torch.no_grad():
                if isinstance(cached, StaticLayer):  # what comes behind the tokens is free
                    key = key[:, :, : int(cached.cumulative_length) if frame.past else query.shape[2]]
                frame.attention = attention_rows(
                    query, key, mask, options, rows.to(query.device), self.method.attention_form()
                )

        frame.tap.enter_context(attention_tap(attention, listen))

    def _close_tap(self, layer: nn.Module, args: tuple, output: Any) -> None:
        if self.frame is not None:
            self.frame.tap.close()

    # -- the layers

    def _before_stage(self, number: int, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """`_before_layer`, timed: what is not choosing there is compaction."""
        frame = self.frame
        if frame is None or frame.prompt is None:
            return self._before_layer(number, layer, args, kwargs)
        stages = frame.prompt.record.stages
        watch, cuts = stopwatch((args[0] if args else kwargs[self.names.hidden]).device), len(stages)
        picked = self._before_layer(number, layer, args, kwargs)
        if len(stages) > cuts:
            stages[-1].passed = watch()
        return picked

    def _before_layer(self, number: int, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        frame, names = self.frame, self.names
        if frame is None:
            return None
        given = names.by_name(number, args, kwargs)
        hidden, cache = given[names.hidden], given.get(names.cache)
        frame.cache = cache
        frame.follow(hidden)
        if frame.prompt is None and frame.index is None and cache is not None and not isinstance(cache, Cache):
            return None  # the paged cache of continuous batching, paused: with a prompt to prune it was refused
        if number == 0 and frame.extra and self.extra is not None:
            hidden = torch.cat([hidden, self.extra[0].to(hidden).expand(hidden.shape[0], -1, -1)], 1)
            frame.cut(torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1), None)
        if number in self.stages and frame.prompt is not None and any(frame.prompt.counts):
            if cache is not None:
                check_cache(cache, self.depth, self.readers)
            hidden = self._cut(number, hidden, cache, frame, frame.prompt)
        if frame.extra and self.extra is not None and 0 < number < len(self.extra):
            hidden = _add_rows(hidden, self.extra[number].to(hidden))
        source = self.sources[number]
        cached = None if cache is None else cache_layer(cache, source)
        if self.parts.attention[number] is None:
            given = pick_state_inputs(given, names, frame, hidden, cached)
        elif hidden.shape[-2] == 1 and isinstance(cached, PrunedStaticLayer):
            return None  # `static_step` sees to it
        elif frame.index is None and not isinstance(cached, AnyPrunedLayer):
            return None
        else:
            batch, tables = hidden.shape[-3], given.get(names.rotary)
            if tables is not None and frame.newest is None and table_length(tables) < frame.length:
                frame.keep_last(table_length(tables), batch, hidden.device)
            if source != number:
                cached = None
            elif cached is not None:
                cached = pruned_layer(cache, number, batch, hidden.device)
            flat = frame.once("flat", None, lambda: takes_flat_masks(self.text_config))
            read = None if source == number else frame.keys[source]
            tokens = self.family.token_inputs
            given, keys = pick_inputs(given, names, frame, hidden, cached, self.group[number], flat, tokens, read)
            if number in self.read:
                frame.keys[number] = keys
            if number in self.scales:
                given[SCALE] = row_scale(frame, self.scales[number], keys.past)
        del given[names.hidden]
        # by place what came by place: reentrant gradient checkpointing cuts the graph there, and at no keyword
        return (hidden, *(given.pop(name) for name in names.layer[number][1 : len(args)])), given

    def _cut(self, number: int, hidden: Tensor, cache: Any, frame: Frame, prompt: Prompt) -> Tensor:
        """The stage before layer `number`, and what it means for the caches of the layers before."""
        extra = frame.extra
        last, shown = number == self.stages[-1], self.family.shown_states(hidden)
        hidden, gathered = cut(hidden, frame, prompt, self.method, number, last, self.always_gather, shown)
        removes = extra - frame.extra
        if not gathered or cache is None or not (self.pruner.compact_cache or removes):
            return hidden
        places = frame.places(len(shown), hidden.device)
        end = frame.past + frame.length
        survivors = torch.ones(len(shown), end + extra, dtype=torch.bool, device=hidden.device)
        lengths = None  # what stays in a cache, where the host knows
        if removes:
            survivors[:, end:] = False
        if self.pruner.compact_cache:
            survivors[:, frame.past :] = False
            positions = frame.positions(places, frame.past)
            survivors |= torch.zeros_like(survivors).scatter(1, positions.clamp(min=0), positions >= 0)
            prompt.record.compacted = number
            if not frame.past:
                lengths = [sum(counts) + frame.extra for counts in zip(prompt.record.text, prompt.counts, strict=True)]
        compact(cache, self.group[:number], survivors, lengths)
        return hidden


def _add_rows(hidden: Tensor, rows: Tensor) -> Tensor:
    """`hidden` (B, n, D) with `rows` (G, D) added to its last ones; in place where no gradient is wanted."""
    if torch.is_grad_enabled():
        return torch.cat([hidden[:, : -len(rows)], hidden[:, -len(rows) :] + rows], 1)
    hidden[:, -len(rows) :] += rows
    return hidden
