"""Ctrl-C at any line of the engine leaves nothing on the model, in transformers' registry or in its answers."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

import foveate
from foveate import FastV
from foveate.engine import attach
from foveate.engine import attachment as engine
from foveate.engine import attention_rows as rows
from foveate.engine.hooks import Hooks
from foveate.errors import AlreadyAttachedError
from tests.laws.methods import METHODS
from tests.models.build import build, inputs
from tests.vision_probe import Look

SWEEP = bool(os.environ.get("FOVEATE_SWEEP"))
pytestmark = pytest.mark.timeout(0 if SWEEP else 300)
ENGINE = str(Path(engine.__file__).parent)
ORIGINAL = AttentionInterface.get_interface


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line of the engine that is run; `lines` counts them."""

    def __init__(self, at: int) -> None:
        self.at, self.lines = at, 0

    def _trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(ENGINE):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error):
        sys.settrace(self.before)


def points(lines: int, number: int = 60) -> range:
    """The lines at which to interrupt: `FOVEATE_SWEEP=1` takes every one, some 14,000 in ten minutes of one core."""
    return range(1, lines + 1, 1 if SWEEP else max(1, lines // number))


def traces(model):
    """What hangs on a model's modules."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    left = [(name, kind) for name, module in model.named_modules() for kind in hooks if module.__dict__[kind]]
    own = [
        (name, key)
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
        if callable(value) and not isinstance(value, torch.nn.Module) and not key.startswith("_")
    ]
    return left, own


def answer(model, batch):
    with torch.no_grad():
        return model(**batch).logits


PRUNERS = {
    "attention": lambda: FastV(layer=3, keep=0.3),
    "tokens": lambda: METHODS["glimpseprune two tokens"],
    "vision": lambda: Look(attended=(1,)),  # it keeps all that it sees
}


@pytest.mark.parametrize("name", list(PRUNERS))
@pytest.mark.parametrize("training", [False, True], ids=["inference", "checkpointing"])
def test_in_a_forward_pass(name, training):
    model, batch, make = build("llava"), inputs("llava", "one image"), PRUNERS[name]
    expected = answer(model, batch)  # transformers registers hooks of its own in the first one
    if training:
        model.train()
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    before = traces(model)
    try:
        with attach(model, make()), Interrupt(0) as whole:
            model(**batch)
        for at in points(whole.lines, 20 if training else 60):
            with contextlib.suppress(KeyboardInterrupt):
                handle = attach(model, make())
                try:
                    with Interrupt(at):
                        model(**batch)
                finally:
                    handle.detach()
            assert traces(model) == before, at
            assert AttentionInterface.get_interface is ORIGINAL, at
            torch.set_grad_enabled(True)  # torch's own checkpointing leaves it off, also without a pruner
    finally:
        if training:
            getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
            model.eval()
    assert torch.equal(answer(model, batch), expected)


@pytest.mark.parametrize("name", ["attention", "vision"])
def test_while_attaching_or_detaching(name):
    model, batch, make = build("llava"), inputs("llava", "one image"), PRUNERS[name]
    expected = answer(model, batch)
    before = traces(model)
    with Interrupt(0) as whole:
        attach(model, make()).detach()
    for at in points(whole.lines, 30):
        with contextlib.suppress(KeyboardInterrupt), Interrupt(at):
            attach(model, make()).detach()
        foveate.detach(model)
        assert traces(model) == before, at
        assert AttentionInterface.get_interface is ORIGINAL, at
    assert torch.equal(answer(model, batch), expected)
    with attach(model, make()):  # and it can be used again
        answer(model, batch)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "while that is undone"])
@pytest.mark.parametrize("kind", ["register_forward_pre_hook", "register_forward_hook"])
def test_between_a_hook_and_the_note_of_it(kind, twice, monkeypatch):
    """The hook is on no list then; an interruption of the undoing, too, leaves it to `foveate.detach(model)`."""
    model, real = build("llava"), getattr(torch.nn.Module, kind)
    before, places = traces(model), 0

    def attach_interrupted(at: int) -> bool:
        count = itertools.count(1)

        def register(module, *args, **options):
            handle = real(module, *args, **options)
            if next(count) == at:
                raise KeyboardInterrupt
            return handle

        def interrupted(hooks):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Module, kind, register)
            if twice:
                patch.setattr(Hooks, "remove", interrupted)
            try:
                attach(model, PRUNERS["attention"]())
            except KeyboardInterrupt:
                return True
        return False

    while attach_interrupted(places + 1):
        places += 1
        if twice:
            foveate.detach(model)
        assert traces(model) == before, places
    foveate.detach(model)
    assert places > 1
    assert traces(model) == before


def test_while_pausing():
    model, batch = build("llava"), inputs("llava", "one image")
    for at in range(1, 12):
        with attach(model, FastV(keep=0.3)) as handle:
            with contextlib.suppress(KeyboardInterrupt), Interrupt(at), handle.paused():
                pass
            answer(model, batch)
            assert handle.report.skipped is None, at


def test_the_next_forward_pass_is_right_while_attached():
    model, batch = build("llava"), inputs("llava", "one image")
    with attach(model, FastV(layer=3, keep=0.3)):
        expected = answer(model, batch)
        for at in range(1, 400, 23):
            with contextlib.suppress(KeyboardInterrupt), Interrupt(at):
                answer(model, batch)
            assert torch.equal(answer(model, batch), expected), at


def test_a_lost_handle_is_named_and_freed():
    model = build("llava")
    attach(model, FastV())
    with pytest.raises(AlreadyAttachedError, match=r"foveate\.detach\(model\)"):
        attach(model, FastV())
    foveate.detach(model)
    foveate.detach(model)
    attach(model, FastV()).detach()


def test_a_lock_is_free_after_an_interruption_at_any_line():
    """Also where it comes between the last statement under the lock and the lock's release."""
    module = torch.nn.Linear(1, 1)
    with Interrupt(0) as whole, rows.attention_tap(module, print):
        pass
    for at in range(1, whole.lines + 1):
        with contextlib.suppress(KeyboardInterrupt), Interrupt(at), rows.attention_tap(module, print):
            pass
        rows.close_taps([module])  # as detaching does
        other = threading.Thread(target=rows.settle_taps, daemon=True)
        other.start()
        other.join(10)
        assert not other.is_alive(), at
        assert AttentionInterface.get_interface is ORIGINAL, at
