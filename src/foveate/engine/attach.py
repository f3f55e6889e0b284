"""Attaching a pruner to a model, and undoing it."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import cast

from torch import nn

from foveate.engine.attachment import Attachment
from foveate.engine.compat import is_wrapper
from foveate.engine.hooks import Hooks
from foveate.engine.report import Report, summarise
from foveate.errors import AlreadyAttachedError
from foveate.families import Family, family_of
from foveate.families.tested import warn_of_untested
from foveate.pruners.base import Pruner

_lock = threading.Lock()
# Weak on both sides: a model that is dropped while attached goes, hooks and all.
_attached: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Hooks]] = weakref.WeakKeyDictionary()


class Handle:
    """A pruner attached to a model; `report` describes what was pruned, `detach` removes it."""

    def __init__(self, model: nn.Module, pruner: Pruner, hooks: Hooks) -> None:
        self.model, self.pruner, self._hooks = model, pruner, hooks

    @property
    def report(self) -> Report:
        """One entry for each prefill since the pruner was attached."""
        here = self._hooks.attachment
        cached = [one is not None and layer not in here.readers for layer, one in enumerate(here.parts.attention)]
        return Report(tuple(summarise(record, here.text_config, here.depth, cached) for record in here.records))

    def detach(self) -> None:
        """Leave the model as it was; the report stays. A second call does nothing."""
        self._hooks.remove()
        with _lock:
            decoder = self._hooks.attachment.parts.decoder
            if _attached_to(decoder) is self._hooks:
                del _attached[decoder]

    @contextlib.contextmanager
    def paused(self) -> Iterator[Handle]:
        """Run the model dense inside the block, in every thread, with the pruner attached all the while.

        For a KV cache that is to hold everything, so that later questions find what they need. A cache that was
        pruned raises `UnsupportedCacheError` inside. The report has an entry for each prefill there, with its reason
        in `skipped`.
        """
        here = self._hooks.attachment
        before, here.paused = here.paused, True
        try:
            yield self
        finally:
            here.paused = before

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(model: nn.Module, pruner: Pruner, *, family: Family | None = None, _always_gather: bool = False) -> Handle:
    """Let `pruner` work in every forward pass of `model` until the handle is detached.

    Parameters
    ----------
    model
        A vision-language model of a supported family, or one with adapters of PEFT; it is hooked, not changed.
    pruner
        The method and its options.
    family
        For a model type that foveate does not list; by default found by `config.model_type`.

    Raises
    ------
    UnsupportedModelError
        When the family is unknown, a part of the model is missing, or one of its modules takes no argument that
        the engine must see, such as the KV cache, by a name that foveate knows.
    AlreadyAttachedError
        When a pruner is attached to this model already.
    BudgetError
        When the pruner does not fit the model, such as a stage beyond its last layer.

    Warns
    -----
    UserWarning
        Once, when a transformers is installed that is newer than every release that foveate was tested with.
    """
    if not isinstance(pruner, Pruner):
        raise TypeError(f"attach needs a pruner such as foveate.GreedyPrune(keep=0.22), got {type(pruner).__name__}")
    warn_of_untested()
    held, model = model, _unwrap(model)
    family = family or family_of(model)
    decoder = family.parts(model).decoder
    with _lock:
        present = _attached_to(decoder)
        if present is not None:
            raise AlreadyAttachedError(f"{present.attachment.pruner!r} is attached to this model; detach it first")
        hooks = Hooks(Attachment(model, pruner, family, _always_gather), held)
        _attached[decoder] = weakref.ref(hooks)
    return Handle(model, pruner, hooks)


def _unwrap(model: nn.Module) -> nn.Module:
    """The model itself, out of what torch.compile and PEFT put around it: their forwards hide what hooks look at."""
    while True:
        adapted = getattr(model, "get_base_model", None)
        if is_wrapper(model):
            model = cast("nn.Module", model._orig_mod)
        elif callable(adapted):
            model = adapted()
        else:
            return model


def _attached_to(decoder: nn.Module) -> Hooks | None:
    reference = _attached.get(decoder)
    return None if reference is None else reference()
