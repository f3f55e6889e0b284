"""Hooks on the whole model, the base model and the decoder: what a forward pass is about, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from foveate.engine.arguments import cache_of, refuse_unknown_cache
from foveate.engine.attachment import Attachment
from foveate.engine.cache import AnyPrunedLayer, check_cache, check_lengths, check_room, guard, has_state, lengths_held
from foveate.engine.cache_layers import WHILE_PAUSED, home_of
from foveate.engine.compat import check_backend, hooks_around_checkpoints
from foveate.engine.cut import at_dense_length
from foveate.engine.forward_pass import ForwardPass, Prompt
from foveate.engine.layer_inputs import check_even, check_state_masks, check_tokens, refuse_unknown
from foveate.engine.prompt import LABELLED, read_prompt
from foveate.errors import UnsupportedCacheError, UnsupportedModelError
from foveate.families.vision_encoder import keep_sizes

UNKNOWN_LAYOUT = (
    "where the visual tokens lie in their images is unknown here; each image was treated as a single row of tokens"
)
TYPES = "mm_token_type_ids"
REPLICA = (
    "DataParallel runs copies of the model, which a pruner cannot be attached to: use one process for each device, or "
    "device_map"
)
COPY = (
    "a copy of the model, as copy.copy makes it, shares its modules and their hooks: run the model itself, or detach"
)
PROPOSALS = (
    "{} takes tokens out of the KV cache of the layers before its stage, which proposed words would have seen: "
    "assisted decoding and prompt lookup need compact_cache=False and a method that adds no tokens"
)
PAUSED = "the pruner was paused"
TOO_SHORT = "{} visual tokens are fewer than min_visual={}: so few run dense"
DECODER_ALONE = (
    "this KV cache was pruned and its model's decoder was called by itself, which does not say where the images are: "
    "call the model"
)


class PromptHooks:
    """In the order in which a forward pass meets them."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment

    def refuse_replica(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before the model and its base: a copy made by DataParallel or `copy.copy` shares the hooks."""
        if module is not self.attachment.model and module is not self.attachment.parts.base:
            raise UnsupportedModelError(REPLICA if getattr(module, "_is_replica", False) else COPY)

    def before_proposals(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> None:
        """Before `generate()` sets up an assistant: the question ends before the words that it will propose.

        Those come with the prompt in one forward pass. They are read with it, so that they would still find in the
        first layers what is taken out of those afterwards.
        """
        here = self.attachment
        ids = torch.tensor(here.parts.visual_ids, device=input_ids.device)
        prunes = here.cuts_earlier_caches and not here.switched_off and not here.paused
        if prunes and bool(torch.isin(input_ids, ids).any()):
            raise UnsupportedModelError(PROPOSALS.format(here.method.name))
        here.thread.asked = input_ids if len(input_ids) == 1 else None  # transformers refuses more, after this

    def before_model(self, kwargs: Mapping[str, Any]) -> None:
        """Before the model: labels and the tokens that logits are asked for do not reach the base model."""
        self.attachment.thread.whole = kwargs.get("labels"), kwargs.get("logits_to_keep")

    def before_base(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Read the prompt; from here on this thread has a forward pass."""
        here = self.attachment
        thread = here.thread
        labels, scored = getattr(thread, "whole", (None, None))
        thread.whole = None, None
        if module is here.model:  # one that calls its decoder itself: `before_model` comes after this
            labels, scored = kwargs.get("labels"), kwargs.get("logits_to_keep")
        asked, thread.asked = getattr(thread, "asked", None), None
        here.end()  # one that was interrupted
        given = {**dict(zip(here.base_takes, args, strict=False)), **kwargs}  # what comes by place has a name, too
        here.begin(read_prompt(given, labels, here.family, here.parts, here.config, asked, scored))
        if here.forward is not None and here.forward.record is not None:
            here.history.to_host()  # the prompt was read from the device just now: it has nothing to do
        reason = PAUSED if here.paused else self._too_short(here.forward)
        if reason is not None:
            self._run_dense(reason)
        # given for us: the model would hand it on to every layer
        if TYPES in kwargs and TYPES not in here.base_takes:
            return args, {name: value for name, value in kwargs.items() if name != TYPES}
        return None

    def _too_short(self, forward: ForwardPass | None) -> str | None:
        """Why this prompt is left alone for its length; None if it is not, or if a sample of the batch is longer."""
        least = self.attachment.method.min_visual
        if forward is None or forward.prompt is None or max(forward.prompt.counts) >= least:
            return None
        return TOO_SHORT.format(max(forward.prompt.counts), least)

    def _run_dense(self, reason: str) -> None:
        """Let this forward pass run as if nothing were attached, but for its entry in the report."""
        forward = self.attachment.forward
        if forward is not None and forward.prompt is not None:
            forward.prompt.record.skipped, forward.prompt = reason, None
            if self.attachment.vision is not None:
                self.attachment.vision.forget(failed=True)

    def before_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Refuse what cannot be pruned exactly, before anything has changed; then get ready to prune."""
        here, forward = self.attachment, self.attachment.forward
        # 1. refusals
        cache = cache_of(kwargs)
        pruned = any(isinstance(layer, AnyPrunedLayer) for layer in getattr(cache, "layers", ()))
        if here.paused and pruned:
            raise UnsupportedCacheError(WHILE_PAUSED)
        if forward is None:
            if pruned:
                raise UnsupportedCacheError(DECODER_ALONE)
            return None
        if forward.prompt is not None:
            self._check_prompt(forward, forward.prompt, cache, kwargs)
        if forward.length > 1:
            check_backend(here.text_config, forward, cache, pruned)
            if pruned or (forward.prompt is not None and cache is not None):
                check_room(cache, forward.length)
        # 2. nothing to prune
        if forward.prompt is None:
            text_only = forward.record is not None and not any(forward.record.visual)
            if text_only and isinstance(cache, Cache) and int(cache.get_seq_length()):
                forward.record = None  # a later turn without an image is not a prefill
            return None
        # 3. a prompt to prune
        if cache is not None:
            forward.past = int(cache.get_seq_length())
        if here.vision is not None:
            forward.prompt.vision = here.vision.take(forward.prompt, kwargs["inputs_embeds"], cache)
        forward.prompt.record.notes += self._notes(forward.prompt)
        if here.extra is not None:
            forward.extra = here.extra.shape[1]
        forward.whole.enter_context(hooks_around_checkpoints(here.parts.layers))
        kwargs, forward.additions = here.family.take_additions(kwargs)
        return args, kwargs

    def _check_prompt(self, forward: ForwardPass, prompt: Prompt, cache: Any, kwargs: Mapping[str, Any]) -> None:
        """Refuse a prompt that the layers after a stage could not go on with, before the first layer runs."""
        here = self.attachment
        refuse_unknown_cache(kwargs)
        check_state_masks(kwargs.get("attention_mask"), here.state_kinds)
        if not here.switched_off:  # what the decoder does not name it hands on to every layer
            more = {name: value for name, value in kwargs.items() if name not in here.decoder_takes}
            refuse_unknown(more, forward.length, here.family.token_inputs)
            for name, axis in here.family.token_inputs.items():
                if isinstance(kwargs.get(name), Tensor):
                    check_tokens(name, kwargs[name], axis, forward.length)
        if cache is None:
            return
        check_cache(cache, here.depth, here.readers)
        forward.held = lengths_held(cache, here.depth)
        states = [
            number
            for number, layer in enumerate(cache.layers[: here.depth])
            if here.parts.attention[number] is None and has_state(layer)
        ]
        stages = [stage for stage in here.stages if stage <= max(states, default=-1)]
        check_even(prompt, here.method, stages, here.always_gather or here.extra is not None)

    def _notes(self, prompt: Prompt) -> list[str]:
        wanted = any(one.uses_grids for one in self.attachment.method.members)
        unknown = wanted and not prompt.layout.known
        return [*self.attachment.notes, *([UNKNOWN_LAYOUT] if unknown else [])]

    def after_decoder(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Record the prefill, prove what the caches hold, and give the states their dense length again."""
        here, forward = self.attachment, self.attachment.forward
        if forward is None:
            return None
        if forward.record is not None:
            here.history.append(forward.record)
        if forward.kept is None:
            return None
        if forward.prompt is not None:
            cache = cache_of(output)
            training = module.training and torch.is_grad_enabled()
            held = forward.held or [0] * here.depth
            cache = forward.cache if cache is None else cache
            check_lengths(cache, held, self._left(forward), training)
            if isinstance(cache, Cache):
                guard(cache, home_of(here.parts.decoder))
        full = at_dense_length(output[0], forward)
        if isinstance(output, tuple):
            return (full, *output[1:])
        output["last_hidden_state"] = full
        return output

    def _left(self, forward: ForwardPass) -> list[int | None]:
        """Tokens of this prefill that the report leaves to each layer's cache; None where earlier turns count in."""
        here = self.attachment
        rows, now = [], forward.length
        stages = {} if forward.record is None else {stage.layer: stage.length for stage in forward.record.stages}
        for layer in range(here.depth):
            now = stages.get(layer) or now
            rows.append(now)
        compacted = 0 if forward.record is None else forward.record.compacted
        left = None if forward.past else rows[compacted]
        held = [left if layer < compacted else count for layer, count in enumerate(rows)]
        return [None if layer in here.readers else count for layer, count in enumerate(held)]

    def after_base(self, module: nn.Module, args: tuple, output: Any) -> None:
        """The forward pass is over, also where it failed (then there is no output)."""
        here, forward = self.attachment, self.attachment.forward
        if here.vision is not None and (output is None or self._took_images(forward)):
            here.vision.forget(failed=output is None)
        here.end()

    @staticmethod
    def _took_images(forward: ForwardPass | None) -> bool:
        """Whether a forward pass was a prefill with images, pruned or not."""
        if forward is None or forward.prompt is not None:
            return forward is not None
        return forward.record is not None and forward.record.skipped == LABELLED

    def after_encoder(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        """After the vision encoder: the sizes of its images travel with what it put out."""
        keep_sizes(output, self.attachment.family.vision_sizes(args, kwargs))
