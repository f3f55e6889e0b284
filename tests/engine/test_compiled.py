"""A compiled model loses tokens as well: what was compiled before a pruner is attached does not run while it is."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

import foveate
from foveate.engine.compat import NOTE
from tests.models.build import build, inputs

PRUNER = foveate.FastV(keep=0.3, layer=1)
BATCH = inputs("llava", "ragged")


def shallow():
    """A model of its own with two decoder layers: compiling takes long."""
    model = copy.deepcopy(build("llava"))
    model.get_decoder().layers = model.get_decoder().layers[:2]
    return model


@pytest.fixture
def model():
    torch._dynamo.reset()
    return shallow()


def logits(model):
    with torch.no_grad():
        return model(**BATCH).logits


@pytest.fixture(scope="module")
def dense():
    return logits(shallow())


@pytest.fixture(scope="module")
def pruned():
    model = shallow()
    with PRUNER(model):
        return logits(model)


def in_place(model):
    model.compile(backend="eager")
    return model, model


def wrapped(model):
    wrapper = torch.compile(model, backend="eager")
    return wrapper, wrapper


def wrapped_and_the_model_attached_to(model):
    return torch.compile(model, backend="eager"), model


def forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model, model


def decoder(model):
    model.get_decoder().compile(backend="eager")
    return model, model


def wrapped_layers(model):
    layers = model.get_decoder().layers
    for number, layer in enumerate(layers):
        layers[number] = torch.compile(layer, backend="eager")
    return model, model


WAYS = [in_place, wrapped, wrapped_and_the_model_attached_to, forward, decoder, wrapped_layers]


def state(model):
    names = ("forward", "_compiled_call_impl")
    return [tuple(module.__dict__.get(name) for name in names) for module in model.modules()]


@pytest.mark.parametrize("how", WAYS)
def test_tokens_leave_a_compiled_model(model, how, pruned):
    runs, held = how(model)
    before = state(runs)
    with foveate.attach(held, PRUNER) as handle:
        torch.testing.assert_close(logits(runs), pruned, atol=1e-5, rtol=0)
    assert len(handle.report.prefills) == 1
    assert (NOTE in handle.report.notes) == (how is not wrapped_and_the_model_attached_to)  # nobody can know of that
    assert state(runs) == before


@pytest.mark.slow
@pytest.mark.parametrize("how", [wrapped_and_the_model_attached_to, forward, decoder])
def test_code_compiled_by_a_dense_run_is_not_used(model, how, dense, pruned):
    runs, held = how(model)
    torch.testing.assert_close(logits(runs), dense, atol=1e-5, rtol=0)
    for _ in range(2):
        with foveate.attach(held, PRUNER):
            torch.testing.assert_close(logits(runs), pruned, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits(runs), dense, atol=1e-5, rtol=0)


def test_compiling_while_attached(model, pruned):
    with foveate.attach(model, PRUNER):
        model.compile(backend="eager")
        torch.testing.assert_close(logits(model), pruned, atol=1e-5, rtol=0)


def test_a_forward_that_someone_wrapped_while_attached(model, dense, pruned):
    """As a Trainer does for mixed precision."""
    handle = foveate.attach(model, PRUNER)
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    torch.testing.assert_close(logits(model), pruned, atol=1e-5, rtol=0)
    handle.detach()
    torch.testing.assert_close(logits(model), dense, atol=1e-5, rtol=0)


def test_the_signature_stays(model):
    """generate() and Trainer ask for it."""
    before = inspect.signature(model.forward)
    with foveate.attach(model, PRUNER):
        assert inspect.signature(model.forward) == before


def test_nothing_stays_where_attaching_fails(model, monkeypatch):
    model.compile(backend="eager")
    before = state(model)
    monkeypatch.setattr(type(model.get_decoder().layers[1]), "register_forward_pre_hook", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        foveate.attach(model, PRUNER)
    assert state(model) == before
