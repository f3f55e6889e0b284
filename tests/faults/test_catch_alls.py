"""An error that nobody meant to catch comes through: no table has it as "does not fit" or as time spent elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import foveate
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


# as torch has them
SHAPES = [
    "The size of tensor a (33) must match the size of tensor b (12) at non-singleton dimension 3",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "shape '[2, 3]' is invalid for input of size 5",
    "Sizes of tensors must match except in dimension 1. Expected size 2 but got size 3 for tensor number 1",
]
OF_THE_MACHINE = [
    "CUDA error: device-side assert triggered",
    "[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "8 bytes. Error code 12 (Cannot allocate memory)",
    "Expected all tensors to be on the same device, but got index is on cpu, different from other tensors on cuda:0 "
    "(when checking argument in method wrapper_CUDA__index_select)",
    "mat1 and mat2 must have the same dtype, but got Float and Half",
    "Invalid buffer size: 30.00 GiB",
]
MEANT = [ValueError("no such thing"), IndexError("no such thing"), *map(RuntimeError, SHAPES)]
OTHERS = [
    Surprise("no such thing"),
    torch.OutOfMemoryError("no such size"),
    RecursionError("no such shape"),
    AttributeError("no such thing"),
    *map(RuntimeError, OF_THE_MACHINE),
]


@pytest.mark.parametrize("error", [*MEANT, TypeError("no such thing"), *OTHERS], ids=repr)
def test_a_reference_that_does_not_fit(error, monkeypatch):
    model, batch = build("llava"), inputs("llava", "one image")
    dense = dense_run(model, batch, 2)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(tolerance, "reference_logits", fail)
    if error in OTHERS:
        with pytest.raises(type(error)):
            tolerance.measure_noise(model, batch, [], dense, family_of(model))
    else:
        assert not tolerance.measure_noise(model, batch, [], dense, family_of(model)).fits


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_a_batch_that_the_dense_model_does_not_take(error, monkeypatch):
    loaded = load_model("tiny")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(check_laws_of, "dense_run", fail)
    with pytest.raises(type(error)):
        check_laws_of.check_model(loaded, [Random(keep=0.3)], family_of(loaded.model), 2)


def test_a_vision_side_that_fails_while_it_is_looked_for():
    family = type("Family", (), {"vision_parts": surprise})()
    with pytest.raises(Surprise):
        timing._vision(family, None)


def not_close():
    torch.testing.assert_close(torch.zeros(2), torch.ones(2))


def test_a_way_that_fails_otherwise_than_dense():
    """Only what comparing logits or transformers says, and says without a pruner as well, is the model's own."""
    model = build("llava")

    def fails(ours, theirs):
        def check(pruner):
            (theirs if pruner is None else ours)()

        return check

    def refuse(number):
        return lambda: model.get_decoder()(input_ids=torch.zeros(1, number), inputs_embeds=torch.zeros(1, number, 2))

    def otherwise():
        model.generate(torch.tensor([[3]]), max_new_tokens=1, num_return_sequences=2, do_sample=False)

    for same in (fails(not_close, not_close), fails(refuse(2), refuse(3))):
        with pytest.raises(NotApplicable, match="dense fails too"):
            unless_dense_fails(same, "dense fails too")

    def helper():
        return model.nothing

    def bare():
        raise AssertionError

    for ours, theirs, error in [
        (helper, helper, AttributeError),
        (bare, bare, AssertionError),
        (refuse(2), otherwise, ValueError),
        (not_close, lambda: None, AssertionError),
        (surprise, surprise, Surprise),
    ]:
        with pytest.raises(error):
            unless_dense_fails(fails(ours, theirs), "dense fails too")


def test_no_error_is_suppressed_that_has_no_name():
    """What ruff's rules against catch-alls do not see."""
    unnamed = re.compile(r"suppress\([^)]*\b(Exception|BaseException|FoveateError)\b|except\s*:")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(Path(foveate.__file__).parent.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if unnamed.search(line)
    ]
    assert not found
    assert unnamed.search("with contextlib.suppress(ValueError, Exception):")
