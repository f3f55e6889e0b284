"""What is fixed while a pruner is attached to a model, and where each thread's forward pass is kept."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from foveate.engine.arguments import find_arguments
from foveate.engine.attention_rows import close_taps
from foveate.engine.forward_pass import ForwardPass
from foveate.engine.history import History
from foveate.engine.layer_inputs import check_method
from foveate.engine.per_thread import PerThread
from foveate.engine.shared_kv import check_stages
from foveate.engine.vision_features import VisionRecorder, vision_recorder
from foveate.errors import BudgetError, UnsupportedModelError
from foveate.families import Family
from foveate.pruners.base import Pruner

NO_CLASS_TOKEN = "{}: the vision encoder has no class token; the attention that all patches pay stands in for its own"
ADDED_STREAMS = (
    "{}: it adds tokens to the prompt, of which this model's layers would want several states (AltUp) that the method "
    "does not have"
)


class Pause:
    """A `paused()` block that is open."""


class Attachment:
    """A model, the method that prunes it, and what the hooks of all subjects share.

    Attributes
    ----------
    pruner
        As the user gave it.
    method
        The same, with all that depends on the model worked out: what the engine runs.
    family, parts, names
        Where the model's pieces are, and what they call their arguments.
    config, text_config, depth
        Of the model and of its decoder; the number of decoder layers.
    stages
        Layers before which the method cuts.
    sources, readers, read
        For each layer the one whose keys and values it reads; the layers that read another's; those that are read.
    group
        For each layer how many stages lie before it: layers of one group hold the same tokens.
    extra
        (S, G, D) embeddings of the method's own tokens; None without any.
    vision
        Recorder of what the vision encoder's blocks put out; None where the method wants none.
    scales
        For each layer whose attention scales its rows by their number, the scale as a function of positions.
    history
        What each prefill recorded.
    hooks
        What holds on to the hooks: it lives as long as they do.
    pauses
        One entry for each `paused()` block that is open, in any thread: the model then runs dense.
    forwards
        The forward pass of each thread until it is over; of one that was interrupted until the thread's next one
        begins.

    Raises
    ------
    BudgetError, UnsupportedModelError
        When the method does not fit the model; nothing has been changed by then.
    """

    def __init__(self, model: nn.Module, pruner: Pruner, family: Family, always_gather: bool = False) -> None:
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
        kinds = getattr(self.text_config, "layer_types", None) or ()
        self.state_kinds = {
            kind for kind, attention in zip(kinds, self.parts.attention, strict=False) if attention is None
        }
        check_stages(pruner.name, self.stages, self.sources)
        self.notes = self.method.notes(self.depth)
        self.extra = _own_tokens(self.method, model)
        check_method(self.method, self.stages, self.parts.attention, self.extra)
        if self.extra is not None and family.has_streams:
            raise UnsupportedModelError(ADDED_STREAMS.format(pruner.name))
        self.vision: VisionRecorder | None = vision_recorder(model, self.method, family)
        if self.vision is not None and self.vision.class_token is None:
            self.notes += tuple(NO_CLASS_TOKEN.format(one.name) for one in self.method.members if one.by_class_token)
        self.group = [sum(stage <= layer for stage in self.stages) for layer in range(self.depth)]
        self.base_takes = inspect.signature(self.parts.base.forward).parameters
        self.decoder_takes = inspect.signature(self.parts.decoder.forward).parameters
        self.scales: dict[int, Callable[[Tensor], Tensor]] = {}
        self.history = History()
        self.pauses: weakref.WeakSet[Pause] = weakref.WeakSet()  # a block that was interrupted lets go of its own
        self.hooks: Any = None
        self.forwards: PerThread[ForwardPass] = PerThread()
        self.thread = threading.local()

    @property
    def paused(self) -> bool:
        """Whether the model runs dense for now."""
        return bool(self.pauses)

    @property
    def forward(self) -> ForwardPass | None:
        """This thread's forward pass."""
        forward = self.forwards.own
        return None if forward is None or forward.over else forward

    def freed(self, failed: bool) -> bool:
        """Whether this thread's forward pass lost its hooks in the midst, and so has failed or has rows missing."""
        forward = self.forwards.own
        return forward is not None and forward.over and (failed or forward.kept is not None)

    def begin(self, forward: ForwardPass | None) -> None:
        """A forward pass of this thread begins; whatever an interrupted one left is undone."""
        self.end()
        if forward is not None:
            self.forwards.own = forward

    def end(self) -> None:
        """This thread's forward pass is over."""
        forward = self.forwards.own
        if forward is not None:
            forward.close()
            self.forwards.own = None

    def busy(self) -> list[str]:
        """Names of other threads that are in a forward pass."""
        alive = {thread.ident: thread.name for thread in threading.enumerate()}
        others = [one.thread for one in self.forwards.every() if one.thread != threading.get_ident()]
        return [alive[one] for one in others if one in alive]

    def close(self) -> None:
        """Undo what was done for forward passes of any thread; safe to repeat."""
        for forward in self.forwards.every():
            forward.close()
        if self.vision is not None:
            self.vision.close()
        close_taps({*self.parts.attention, *(self.vision.attention.values() if self.vision else ())} - {None})

    @property
    def switched_off(self) -> bool:
        """Whether the method keeps every token: `keep=1.0`."""
        return getattr(self.method, "keep", None) == 1.0

    @property
    def cuts_earlier_caches(self) -> bool:
        """Whether a stage takes tokens out of the KV cache of the layers before it."""
        return self.method.compact_cache or self.extra is not None

    def __reduce__(self) -> Any:
        raise UnsupportedModelError(
            "a model cannot be copied or pickled while a pruner is attached to it: detach first"
        )


def _own_tokens(method: Pruner, model: nn.Module) -> Tensor | None:
    extra = method.extra_tokens(model)
    return extra[None] if extra is not None and extra.ndim == 2 else extra
