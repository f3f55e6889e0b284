"""Attaching a pruner to a model, and undoing it."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any, cast

from torch import nn

from foveate.engine.attachment import Attachment, Pause
from foveate.engine.attention_rows import settle_taps
from foveate.engine.compat import is_wrapper, sweep
from foveate.engine.hooks import Hooks
from foveate.engine.mutex import Mutex
from foveate.engine.report import Report, summarise
from foveate.errors import AlreadyAttachedError, ModelInUseError
from foveate.families import Family, family_of
from foveate.families.tested import warn_of_untested
from foveate.pruners.base import Pruner
from foveate.tensors import on_cpu_by_default

_lock = Mutex()
# Weak on both sides: a model that is dropped while attached goes, hooks and all.
_attached: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Hooks]] = weakref.WeakKeyDictionary()


class Handle:
    """A pruner attached to a model; `report` describes what was pruned, `detach` removes it."""

    def __init__(self, model: nn.Module, pruner: Pruner, hooks: Hooks) -> None:
        here = hooks.attachment
        cached = [one is not None and layer not in here.readers for layer, one in enumerate(here.parts.attention)]
        self.pruner, self._model = pruner, weakref.ref(model)
        self._hooks: Hooks | None = hooks
        self._history = here.history
        self._summarise = functools.partial(summarise, config=here.text_config, depth=here.depth, cached=cached)

    @property
    def model(self) -> nn.Module | None:
        """The model; None once nobody else holds it: a handle that is detached does not keep it alive."""
        return self._model()

    @property
    def report(self) -> Report:
        """One entry for each of the last 100 prefills since the pruner was attached, and the number of all."""
        return on_cpu_by_default(self._history.report, self._summarise)

    def detach(self) -> None:
        """Leave the model as it was; the report stays. A second call does nothing.

        Raises
        ------
        ModelInUseError
            When another thread is in a forward pass of the model; nothing has been changed.
        """
        if self._hooks is None:
            return
        busy = self._hooks.attachment.busy()
        if busy:
            raise ModelInUseError(
                f"thread {', '.join(map(repr, busy))} is in a forward pass of this model: detach when it is over, or, "
                "if it never will be, call foveate.detach(model)"
            )
        _free(self._hooks)
        self._hooks = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[Handle]:
        """Run the model dense inside the block, in every thread, with the pruner attached all the while.

        For a KV cache that is to hold everything, so that later questions find what they need. A cache that was
        pruned raises `UnsupportedCacheError` inside. The report has an entry for each prefill there, with its reason
        in `skipped`.
        """
        pauses, mine = set() if self._hooks is None else self._hooks.attachment.pauses, Pause()
        try:
            pauses.add(mine)
            yield self
        finally:
            pauses.discard(mine)

    def __repr__(self) -> str:
        return f"<Handle of {self.pruner!r}, {'detached' if self._hooks is None else 'attached'}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a handle belongs to one model in one process, and cannot be copied or pickled: take its report"
        )

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
            raise AlreadyAttachedError(
                f"{present.attachment.pruner!r} is attached to this model; detach it first or, if its handle is lost, "
                "call foveate.detach(model)"
            )
        hooks = on_cpu_by_default(lambda: Hooks(Attachment(model, pruner, family, _always_gather), held))
        _attached[decoder] = weakref.ref(hooks)
    return Handle(model, pruner, hooks)


def detach(model: nn.Module) -> None:
    """Free a model of any pruner, as a last resort: its handle is lost, or a thread was stopped in a forward pass.

    Whatever foveate put on the model is taken off, whoever is using it. Without a pruner it does nothing.

    Parameters
    ----------
    model
        As it was given to `attach`.
    """
    held, model = model, _unwrap(model)
    for module in list(model.modules()):
        hooks = _attached_to(module)
        if hooks is not None:
            _free(hooks)
    for one in {held, model}:
        sweep(one)
    settle_taps()


def _free(hooks: Hooks) -> None:
    hooks.remove()
    decoder = hooks.attachment.parts.decoder
    with _lock:
        if _attached_to(decoder) is hooks:
            del _attached[decoder]


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
