"""An error that nobody meant to catch comes through: no table has it as "does not fit" or as time spent elsewhere."""

from __future__ import annotations

import pytest
import torch

from foveate import Random
from foveate.families import family_of
from foveate.measure.bench import timing
from foveate.measure.check import check as check_laws_of
from foveate.measure.check import tolerance
from foveate.measure.loading import load_model
from foveate.testing import dense_run
from tests.models.build import build, inputs
from tests.ways.checks import unless_dense_fails
from tests.ways.ways import NotApplicable


class Surprise(Exception):
    """What no code here expects."""


def surprise(*args, **kwargs):
    raise Surprise


MEANT = [ValueError, IndexError, RuntimeError]
OTHERS = [Surprise, torch.OutOfMemoryError, AttributeError]


@pytest.mark.parametrize("error", [*MEANT, TypeError, *OTHERS])
def test_a_reference_that_does_not_fit(error, monkeypatch):
    model, batch = build("llava"), inputs("llava", "one image")
    dense = dense_run(model, batch, 2)

    def fail(*args, **kwargs):
        raise error("no such thing")

    monkeypatch.setattr(tolerance, "reference_logits", fail)
    if error in OTHERS:
        with pytest.raises(error):
            tolerance.measure_noise(model, batch, [], dense, family_of(model))
    else:
        assert not tolerance.measure_noise(model, batch, [], dense, family_of(model)).fits


@pytest.mark.parametrize("error", OTHERS)
def test_a_batch_that_the_dense_model_does_not_take(error, monkeypatch):
    loaded = load_model("tiny")

    def fail(*args, **kwargs):
        raise error("no such thing")

    monkeypatch.setattr(check_laws_of, "dense_run", fail)
    with pytest.raises(error):
        check_laws_of.check_model(loaded, [Random(keep=0.3)], family_of(loaded.model), 2)


def test_a_vision_side_that_fails_while_it_is_looked_for():
    family = type("Family", (), {"vision_parts": surprise})()
    with pytest.raises(Surprise):
        timing._vision(family, None)


def test_a_way_that_fails_otherwise_than_dense():
    def check(pruner):
        raise ValueError if pruner is None else Surprise

    with pytest.raises(Surprise):
        unless_dense_fails(check, "dense fails too")

    def both(pruner):
        raise ValueError

    with pytest.raises(NotApplicable, match="dense fails too"):
        unless_dense_fails(both, "dense fails too")
