"""One model, several threads: pausing counts, and detaching waits for nobody without saying so."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch

import foveate
from foveate import FastV
from foveate.engine import attach
from foveate.errors import ModelInUseError
from tests.models.build import build, inputs


def test_each_paused_block_counts():
    model, batch = build("llava"), inputs("llava", "one image")
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()

    def prefill() -> str | None:
        with torch.no_grad():
            model(**batch)
        return handle.report.prefills[-1].skipped

    found = {}

    def first() -> None:
        with handle.paused():
            first_is_in.set()
            assert second_is_in.wait(30)
        first_is_out.set()

    def second() -> None:
        assert first_is_in.wait(30)
        with handle.paused():
            second_is_in.set()
            assert first_is_out.wait(30)
            found["one is still paused"] = prefill()

    with attach(model, FastV(keep=0.3)) as handle:
        threads = [threading.Thread(target=work) for work in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {"one is still paused": "the pruner was paused"}
        assert prefill() is None


@pytest.mark.parametrize("force", [False, True])
def test_detaching_while_another_thread_runs(force):
    model, batch = build("llava"), inputs("llava", "one image")
    inside, go_on, results, finished = threading.Event(), threading.Event(), [], []

    def wait(module, args) -> None:
        inside.set()
        assert go_on.wait(30)

    handle = attach(model, FastV(layer=2, keep=0.3))
    stop = model.get_decoder().layers[4].register_forward_pre_hook(wait)

    def run() -> None:
        # freed by force, the layers after the cut find arguments for more tokens than there are
        lost = pytest.raises(ModelInUseError, match="freed this model while this thread")
        with torch.no_grad(), lost if force else contextlib.nullcontext():
            results.append(model(**batch).logits)
        finished.append(True)

    thread = threading.Thread(target=run, name="worker")
    thread.start()
    assert inside.wait(30)
    with pytest.raises(ModelInUseError, match="'worker' is in a forward pass"):
        handle.detach()
    if force:
        foveate.detach(model)
    go_on.set()
    thread.join()
    stop.remove()
    assert finished
    if not force:
        assert len(results) == 1
        assert handle.report.stages
    handle.detach()
    with torch.no_grad():
        model(**batch)


def test_freed_after_the_last_layer():
    """Nothing fails there, but the hidden states are short."""
    model, batch = build("llava"), inputs("llava", "one image")
    attach(model, FastV(layer=2, keep=0.3))
    stop = model.get_decoder().norm.register_forward_hook(lambda *args: foveate.detach(model))
    with pytest.raises(ModelInUseError, match="freed this model"), torch.no_grad():
        model(**batch)
    stop.remove()
    with torch.no_grad():
        model(**batch)
