"""What is not needed is not done: sdpa keeps its causal kernel after a cut, and no attention is read for nobody."""

from __future__ import annotations

import pytest

from foveate import FastV, Random
from foveate.engine import tap_hooks
from tests.laws.methods import METHODS
from tests.models.build import build, generate, inputs


def masks(model, batch, pruner) -> list[object]:
    """What each decoder layer was handed as its mask, prefill first."""
    seen = []
    with pruner(model):
        handles = [
            layer.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
            )
            for layer in model.get_decoder().layers
        ]
        try:
            generate(model, batch, 3)
        finally:
            for handle in handles:
                handle.remove()
    return seen


@pytest.mark.parametrize("method", ["random mid", "greedyprune compacted", "btp", "glimpseprune"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_sample_alone_needs_no_mask(family, method):
    found = masks(build(family), inputs(family, "one image"), METHODS[method])
    assert found
    assert all(mask is None for mask in found)


def test_nor_does_a_batch_of_samples_alike():
    batch = inputs("llava", [[3, None, 4], [5, None, 2]])
    assert batch["attention_mask"].all()
    assert all(mask is None for mask in masks(build("llava"), batch, METHODS["random mid"]))


def test_samples_of_several_lengths_do_need_one():
    found = masks(build("llava"), inputs("llava", "ragged"), METHODS["random mid"])
    assert all(mask is not None for mask in found)


@pytest.mark.parametrize(
    ("pruner", "taps"), [(Random(keep=0.3, layer=2), 0), (FastV(keep=0.3), 1), (FastV(keep=1.0), 0)]
)
def test_attention_is_read_only_where_a_method_wants_it(pruner, taps, monkeypatch):
    opened = []

    def counted(attention, listen, tap=tap_hooks.attention_tap):
        opened.append(attention)
        return tap(attention, listen)

    monkeypatch.setattr(tap_hooks, "attention_tap", counted)
    with pruner(build("llava")) as pruned:
        generate(pruned.model, inputs("llava", "one image"), 2)
    assert len(opened) == taps
