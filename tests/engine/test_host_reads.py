"""A cut of known size makes the CPU wait for nothing: no tensor is read back from the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveate import BTP, FastV, GlimpsePrune, PyramidDrop, Random
from tests.fake_devices import FakeDevices, label
from tests.models.build import build, inputs

READS = (Tensor.tolist, Tensor.item, Tensor.cpu, Tensor.__bool__, Tensor.__int__, Tensor.nonzero)


class Counted(FakeDevices):
    """Counts what is read from tensors that are not on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in READS and label(args[0]).type != "cpu":
            self.reads.append(function.__name__)
        return super().__torch_function__(function, types, args, kwargs)


def reads(model, batch, pruner=None) -> list[str]:
    """What a prefill reads back."""
    with Counted() as counted, torch.no_grad():
        if pruner is None:
            model(**batch, use_cache=True)
        else:
            with pruner(model):
                model(**batch, use_cache=True)
    return counted.reads


@pytest.mark.parametrize(
    "pruner",
    [
        Random(keep=0.3),
        FastV(keep=7),
        PyramidDrop(keep=0.3),
        BTP(stages=[(1, 0.5, 1.0), (3, 0.2, 1.0)]),
        GlimpsePrune(keep=0.3, layer=4),
    ],
    ids=lambda pruner: pruner.name,
)
@pytest.mark.parametrize("layout", ["one image", "ragged"])
def test_one_read_a_prefill_and_none_a_cut(pruner, layout):
    model, batch = build("llava"), inputs("llava", layout)
    dense = reads(model, batch)
    pruned = reads(model, batch, pruner)
    assert pruned == ["cpu", *dense]  # where the prompt's images are


def test_a_budget_that_the_method_finds_is_read():
    model, batch = build("llava"), inputs("llava", "ragged")
    assert len(reads(model, batch, GlimpsePrune(layer=4))) > len(reads(model, batch)) + 1


def test_a_method_that_says_one_thing_and_keeps_another_is_stopped():
    class Liar(Random):
        def kept(self, layer, dense, present):
            return super().kept(layer, dense, present) - 1

    with (
        pytest.raises(RuntimeError, match=r"Liar.kept says \[\d+\], select kept \[\d+\]"),
        Liar(keep=0.3)(build("llava")),
    ):
        build("llava")(**inputs("llava", "one image"))
