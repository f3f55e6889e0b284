"""Chunked prefill of a prompt with images is refused; what need not be cut, or holds no image, goes on."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import utils

from foveate import FastV, Random
from foveate.errors import UnsupportedModelError
from tests.models.build import build, generate, inputs

CUTS_IMAGES = pytest.mark.skipif(
    not hasattr(utils, "_slice_mm_encoder_output"), reason="without pruning, too, this release loses the images"
)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("pruner", [Random(keep=0.3), FastV(keep=0.3)], ids=lambda pruner: pruner.name)
def test_refused_before_anything_runs(family, pruner):
    model, batch = build(family), inputs(family, "two images")
    ran = []
    handle = model.model.register_forward_pre_hook(lambda *args: ran.append(1))
    try:
        with pytest.raises(UnsupportedModelError, match="chunked prefill"), pruner(model):
            generate(model, batch, 2, prefill_chunk_size=10)
    finally:
        handle.remove()
    assert not ran
    assert "_prefill" not in model.__dict__


@CUTS_IMAGES
def test_one_chunk_is_no_chunk():
    model, batch = build("llava"), inputs("llava", "one image")
    with Random(keep=0.3)(model) as pruned:
        whole = generate(model, batch, 3)
        same = generate(model, batch, 3, prefill_chunk_size=64)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(same.logits, whole.logits, strict=True))
    assert [prefill.stages[0].kept[0].numel() for prefill in pruned.report.prefills] == [5, 5]


def test_text_may_be_cut():
    model, batch = build("llava"), inputs("llava", "no image")
    dense = generate(model, batch, 3, prefill_chunk_size=4)
    with Random(keep=0.3)(model):
        same = generate(model, batch, 3, prefill_chunk_size=4)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(same.logits, dense.logits, strict=True))


@CUTS_IMAGES
def test_a_paused_pruner_does_not_mind():
    model, batch = build("qwen2_5_vl"), inputs("qwen2_5_vl", "one image")
    dense = generate(model, batch, 3, prefill_chunk_size=10)
    with Random(keep=0.3)(model) as pruned, pruned.paused():
        same = generate(model, batch, 3, prefill_chunk_size=10)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(same.logits, dense.logits, strict=True))
