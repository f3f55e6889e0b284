"""The hooks: where the engine meets a model. They know no method and no family by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from foveate.engine.attention import attention_rows, attention_tap
from foveate.engine.cache import PrunedLayer, cache_layer, check_cache
from foveate.engine.frame import Frame, PrefillRecord
from foveate.engine.gather import align_right, gather_positions, gather_rotary
from foveate.engine.mask import pick_mask
from foveate.engine.prompt import last_prompt_token, number_images
from foveate.engine.stage import cut
from foveate.errors import UnsupportedModelError
from foveate.families import Family, visual_mask
from foveate.pruners.base import PromptRows, Pruner

LAYER_INPUTS = {"hidden_states", "attention_mask", "position_ids", "position_embeddings", "past_key_values", "use_cache"}


class Hooks:
    """Hooks of one pruner on one model; `remove` takes them all off again."""

    def __init__(self, model: nn.Module, pruner: Pruner, family: Family, always_gather: bool = False) -> None:
        self.model, self.pruner, self.family, self.always_gather = model, pruner, family, always_gather
        self.parts = family.parts(model)
        self.depth = len(self.parts.layers)
        self.stages = pruner.layers(self.depth)
        self.extra = pruner.extra_tokens(model)
        self.records: list[PrefillRecord] = []
        self.thread = threading.local()
        self.group = [sum(stage <= layer for stage in self.stages) for layer in range(self.depth)]
        self.handles: list[Any] = []
        try:
            self._register()
        except BaseException:
            self.remove()
            raise

    def _register(self) -> None:
        parts = self.parts
        if self.model is not parts.base:
            self._before(self.model, self._before_model)
        self._before(parts.base, self._before_base)
        self._after(parts.base, self._after_base, always_call=True)
        self._before(parts.decoder, self._before_decoder)
        self._after(parts.decoder, self._after_decoder)
        if self.extra is not None:
            self._before(parts.rotary, self._before_rotary)
        cuts_cache = self.pruner.compact_cache or self.extra is not None
        first = 0 if cuts_cache else min(self.stages, default=self.depth)
        for number, layer in enumerate(parts.layers):
            if number >= first:
                self._before(layer, partial(self._before_layer, number))
            if number + 1 in self.stages:
                self._before(layer, partial(self._open_tap, number))
                self._after(layer, self._close_tap, always_call=True)
            if self.family.has_additions:
                self._after(layer, partial(self._add_features, number))

    def _before(self, module: nn.Module, hook: Callable) -> None:
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after(self, module: nn.Module, hook: Callable, always_call: bool = False) -> None:
        self.handles.append(module.register_forward_hook(hook, always_call=always_call))

    def remove(self) -> None:
        """Take every hook off."""
        while self.handles:
            self.handles.pop().remove()

    @property
    def frame(self) -> Frame | None:
        """This thread's forward pass."""
        return getattr(self.thread, "frame", None)

    # -- what a forward pass is about

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.thread.labels = kwargs.get("labels")

    def _before_base(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        labels, self.thread.labels = getattr(self.thread, "labels", None), None
        self.thread.frame = None
        if args:
            kwargs = {"input_ids": args[0], **kwargs}
        tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        if tokens is None:
            return  # the model says what it misses
        frame = Frame(length=tokens.shape[1])
        visual = visual_mask(self.parts, kwargs)
        if visual is not None:
            mask = kwargs.get("attention_mask")
            if isinstance(mask, Tensor) and mask.ndim == 2:
                frame.prompt = mask[:, -frame.length :].bool()
                visual = visual & frame.prompt
            frame.query = last_prompt_token(frame.length, frame.prompt, labels, tokens)
            visual = visual & (torch.arange(frame.length, device=visual.device) <= frame.query[:, None])
            real = torch.full_like(frame.query, frame.length) if frame.prompt is None else frame.prompt.sum(-1)
            frame.counts, real = torch.stack([visual.sum(-1), real]).tolist()  # one host sync a prefill
            text = [number - count for number, count in zip(real, frame.counts)]
            frame.record = PrefillRecord(text, list(frame.counts), None)
            if any(frame.counts):
                lengths = self.family.image_lengths(self.model.config, kwargs, sum(frame.counts))
                frame.visual = visual
                frame.image = frame.record.image = number_images(visual, frame.counts, lengths)
            else:
                frame.record.skipped = "no visual token in the prompt"
        self.thread.frame = frame

    def _after_base(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.frame is not None:
            self.frame.tap.close()
            self.thread.frame = None

    def _before_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        frame = self.frame
        if frame is None:
            return None
        cache = kwargs.get("past_key_values")
        if frame.visual is None:
            if frame.record is not None and cache is not None and int(cache.get_seq_length()):
                frame.record = None  # a later turn without an image is not a prefill
            return None
        if cache is not None:
            check_cache(cache, self.depth)
            frame.past = int(cache.get_seq_length())
        if self.extra is not None:
            frame.extra = self.extra.shape[0]
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
        hidden = output[0]
        alive = frame.alive if frame.alive is not None else torch.ones_like(frame.index, dtype=torch.bool)
        batch = torch.arange(hidden.shape[0], device=hidden.device)[:, None].expand_as(frame.index)
        full = hidden.new_zeros(hidden.shape[0], frame.length, hidden.shape[-1])
        full = full.index_put((batch[alive], frame.index[alive]), hidden[alive])
        if isinstance(output, tuple):
            return (full, *output[1:])
        output["last_hidden_state"] = full
        return output

    # -- tokens that the method adds

    def _before_rotary(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        frame = self.frame
        if frame is None or not frame.extra:
            return None
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": self._continued(kwargs["position_ids"], frame)}
        return (args[0], self._continued(args[1], frame), *args[2:]), kwargs

    def _continued(self, positions: Tensor, frame: Frame) -> Tensor:
        """Position ids (…, B or 1, L) with the next ones after the last prompt token appended."""
        last = gather_positions(positions, frame.query[:, None], -1)
        following = last + 1 + torch.arange(frame.extra, device=positions.device)
        return torch.cat([positions.expand(*following.shape[:-1], -1), following], -1)

    def _add_features(self, number: int, layer: nn.Module, args: tuple, output: Any) -> Any:
        frame = self.frame
        if frame is None or frame.additions is None or number >= len(frame.additions.values):
            return None
        hidden = output[0] if isinstance(output, tuple) else output
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
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    # -- attention rows

    def _open_tap(self, number: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        frame = self.frame
        if frame is None or frame.visual is None:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        places = frame.places(hidden.shape[0], hidden.device)
        last = (places == frame.query[:, None]).to(torch.uint8).argmax(-1)
        extra = torch.arange(hidden.shape[1] - frame.extra, hidden.shape[1], device=hidden.device)
        rows = self.pruner.attention_rows(number + 1, PromptRows(last, extra.expand(hidden.shape[0], -1)))
        if rows is None:
            return

        def listen(query: Tensor, key: Tensor, mask: Any, options: dict) -> None:
            frame.attention = attention_rows(query, key, mask, options, rows)

        frame.tap.enter_context(attention_tap(self.parts.attention[number], listen))

    def _close_tap(self, layer: nn.Module, args: tuple, output: Any) -> None:
        if self.frame is not None:
            self.frame.tap.close()

    # -- the layers

    def _before_layer(self, number: int, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        frame = self.frame
        if frame is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get("past_key_values")
        if number == 0 and frame.extra:
            hidden = torch.cat([hidden, self.extra.to(hidden).expand(hidden.shape[0], -1, -1)], 1)
            frame.cut(torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1), None)
        if number in self.stages and frame.visual is not None and any(frame.counts):
            if cache is not None:
                check_cache(cache, self.depth)
            extra = frame.extra
            hidden, gathered = cut(
                hidden, frame, self.pruner, number, number == self.stages[-1], self.always_gather
            )
            if gathered and cache is not None and (self.pruner.compact_cache or frame.extra != extra):
                self._compact(cache, frame, number)
        changed = self._layer_inputs(number, hidden, cache, frame, kwargs)
        if changed is None:
            return None
        return ((hidden, *args[1:]), changed) if args else (args, {**changed, "hidden_states": hidden})

    def _layer_inputs(self, number: int, hidden: Tensor, cache: Any, frame: Frame, kwargs: dict) -> dict | None:
        """The layer's arguments for the tokens that are there; None where all are."""
        layer = None if cache is None else cache_layer(cache, number)
        if frame.index is None and not isinstance(layer, PrunedLayer):
            return None
        places = frame.places(hidden.shape[0], hidden.device)
        if isinstance(layer, DynamicLayer) and not isinstance(layer, PrunedLayer):
            layer = cache.layers[number] = PrunedLayer.adopt(layer, hidden.shape[0], hidden.device)
        past = frame.past if layer is None else layer.dense_length
        kwargs = dict(kwargs)
        if frame.index is not None:
            _refuse_unknown(kwargs, frame.length)
            tables, ids = kwargs.get("position_embeddings"), kwargs.get("position_ids")
            if tables is not None:
                kwargs["position_embeddings"] = frame.once("rotary", tables, lambda: gather_rotary(tables, places))
            if ids is not None:
                longer = self._continued(ids, frame) if frame.extra else ids
                kwargs["position_ids"] = frame.once("ids", ids, lambda: gather_positions(longer, places, -1))
        group, length = self.group[number], past + frame.length
        padded = frame.alive is not None or (layer is not None and layer.padded)
        rows = frame.once("rows", None, lambda: self._dense_positions(frame, places, past))
        slots = rows
        if layer is not None:
            old = layer.slots
            slots = frame.once(("slots", group), None, lambda: torch.cat([old, rows], -1))
            layer.expect(slots, length, padded)
        mask = kwargs.get("attention_mask")
        last = frame.query + past if frame.extra else None
        flat = "flash" in (self.parts.decoder.config._attn_implementation or "")
        kwargs["attention_mask"] = frame.once(
            ("mask", group), mask, lambda: pick_mask(mask, rows, slots, length, last, padded, flat)
        )
        return kwargs

    @staticmethod
    def _dense_positions(frame: Frame, places: Tensor, past: int) -> Tensor:
        """(B, n) positions in the whole conversation, -1 for padding."""
        rows = places + past
        return rows if frame.alive is None else rows.masked_fill(~frame.alive, -1)

    def _compact(self, cache: Any, frame: Frame, stage: int) -> None:
        """Cut the KV cache of the layers before `stage` to what is there now, or only the method's own tokens away."""
        device = frame.index.device
        batch = frame.index.shape[0]
        end = frame.past + frame.length
        survivors = torch.ones(batch, end + self._extra_number(), dtype=torch.bool, device=device)
        survivors[:, end:] = False
        if self.pruner.compact_cache:
            survivors[:, frame.past :] = False
            places = self._dense_positions(frame, frame.index, frame.past)
            survivors = survivors | torch.zeros_like(survivors).scatter(1, places.clamp(min=0), places >= 0)
        picked: dict[int, tuple] = {}
        for number in range(stage):
            layer = cache.layers[number]
            if not isinstance(layer, PrunedLayer):
                layer = cache.layers[number] = PrunedLayer.adopt(layer, batch, device)
            group = self.group[number]
            if group not in picked:
                stay = survivors.gather(1, layer.slots.clamp(min=0)) & (layer.slots >= 0)
                counts = stay.sum(-1).tolist()
                index = align_right(stay, max(counts))
                slots = layer.slots.gather(1, index).masked_fill(~stay.gather(1, index), -1)
                picked[group] = index, slots, min(counts) != max(counts)
            layer.keep_slots(*picked[group])
        if self.pruner.compact_cache and frame.record is not None:
            frame.record.compacted = stage

    def _extra_number(self) -> int:
        return 0 if self.extra is None else self.extra.shape[0]


def _refuse_unknown(kwargs: dict, length: int) -> None:
    """An argument with one entry a token that the engine does not know would no longer fit the tokens."""
    for name, value in kwargs.items():
        if name.startswith("cu_seq") and value is not None:
            raise UnsupportedModelError("pruning does not support packed sequences (cu_seq_lens)")
        if name not in LAYER_INPUTS and isinstance(value, Tensor) and length in value.shape:
            raise UnsupportedModelError(f"the decoder layers take {name!r}, one entry a token, which foveate cannot cut")
