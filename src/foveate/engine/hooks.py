"""Where the engine meets a model: which hook is on which module. They know no method and no family by name.

In the order of a forward pass: `vision_features` listens to the vision encoder, `prompt_hooks` reads the prompt,
`layer_hooks` cuts and picks arguments before each decoder layer, `tap_hooks` reads attention in the layer before a
stage.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from foveate.engine.attachment import Attachment
from foveate.engine.cache_layers import ALONE, WHILE_PAUSED, alone, home_of
from foveate.engine.compat import (
    NOTE,
    guard_method,
    in_python,
    refuse_chunks,
    refuse_continuous_batching,
    run_as_python,
    set_compiled_aside,
    sweep,
)
from foveate.engine.layer_hooks import LayerHooks
from foveate.engine.layer_inputs import static_step
from foveate.engine.prompt_hooks import PromptHooks
from foveate.engine.tap_hooks import TapHooks


class Hooks:
    """Hooks of one attachment; `remove` takes them all off again.

    Parameters
    ----------
    attachment
        The model and the method.
    held
        What the user has in hand: the model, or a wrapper around it.
    """

    def __init__(self, attachment: Attachment, held: nn.Module) -> None:
        self.attachment = attachment
        attachment.hooks = self
        self.prompt, self.layers, self.taps = PromptHooks(attachment), LayerHooks(attachment), TapHooks(attachment)
        self.handles: list[Any] = []
        self.undo: list[Callable[[], None]] = []
        try:
            self._replace(held)
            self._register()
            self._open_home()
        except BaseException:
            self.remove()
            sweep(attachment.model)  # a hook that was registered, but not yet noted
            raise

    def _replace(self, held: nn.Module) -> None:
        """What no hook can do: methods of the model's own that run through us."""
        model, here = self.attachment.model, self.attachment
        set_compiled_aside(held, self.undo)
        if self.undo:
            here.notes = (*here.notes, NOTE)
        self.undo.append(run_as_python(model, self.prompt.before_model, here.freed))
        self.undo.append(refuse_chunks(model, here.parts.visual_ids, lambda: not here.paused))
        self.undo += refuse_continuous_batching(model, lambda: not here.paused)
        self.undo.append(guard_method(model, "_get_candidate_generator", self.prompt.before_proposals))

    def _open_home(self) -> None:
        """Let caches that were pruned for this model go on, as long as the hooks are there."""
        seen, home = weakref.ref(self.attachment), home_of(self.attachment.parts.decoder)

        def refusal() -> str | None:
            here = seen()
            if here is None:
                return ALONE
            return WHILE_PAUSED if here.paused else None

        def close() -> None:
            if home.refusal is refusal:
                home.refusal = alone

        home.refusal = refusal
        self.undo.append(close)

    def _register(self) -> None:
        here = self.attachment
        parts = here.parts
        for module in {here.model, parts.base}:
            self._before(module, self.prompt.refuse_replica)
        self._before(parts.base, self.prompt.before_base)
        self._after(parts.base, self.prompt.after_base, always_call=True)
        self._before(parts.decoder, self.prompt.before_decoder)
        self._after(parts.decoder, self.prompt.after_decoder)
        if here.extra is not None:
            for rotary in (parts.rotary, *parts.more_rotary):
                self._before(rotary, self.layers.before_rotary)
        if here.vision is not None:
            self.handles += here.vision.register()
        if here.family.wants_sizes:
            encoder = here.family.vision_parts(here.model).encoder
            self.handles.append(encoder.register_forward_hook(in_python(self.prompt.after_encoder), with_kwargs=True))
        first = 0 if here.cuts_earlier_caches else min(here.stages, default=here.depth)
        for number, layer in enumerate(parts.layers):
            self._register_layer(number, layer, touched=number >= first)

    def _register_layer(self, number: int, layer: nn.Module, touched: bool) -> None:
        here = self.attachment
        if touched:
            before = self.layers.before_stage if number in here.stages else self.layers.before_layer
            self._before(layer, partial(before, number))
            step = partial(static_step, number, here.names)
            self.handles.append(layer.register_forward_pre_hook(step, with_kwargs=True))
        self._register_scale(number)
        if number + 1 in here.stages:
            self._before(layer, partial(self.taps.before_layer, number))
            self._after(layer, self.taps.after_layer, always_call=True)
        if here.family.has_additions:
            self._after(layer, partial(self.layers.after_layer, number))

    def _register_scale(self, number: int) -> None:
        """For an attention that scales its rows by their number: see `Family.scaled_rows`."""
        here = self.attachment
        attention = here.parts.attention[number]
        scaled = None if attention is None else here.family.scaled_rows(attention)
        if attention is not None and scaled is not None and number >= min(here.stages, default=here.depth):
            here.scales[number] = scaled[1]
            self._before(attention, self.layers.take_scale)
            self._after(scaled[0], self.layers.scale_rows)

    def _before(self, module: nn.Module, hook: Callable) -> None:
        self.handles.append(module.register_forward_pre_hook(in_python(hook), with_kwargs=True))

    def _after(self, module: nn.Module, hook: Callable, always_call: bool = False) -> None:
        self.handles.append(module.register_forward_hook(in_python(hook), always_call=always_call))

    def remove(self) -> None:
        """Take every hook off; safe to repeat, also after an interruption."""
        while self.handles:
            self.handles[-1].remove()
            self.handles.pop()
        while self.undo:
            self.undo[-1]()
            self.undo.pop()
        self.attachment.close()
