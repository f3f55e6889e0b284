"""The flash path on CPU: a backend that takes flash attention's flat (B, K) padding masks, and answers like sdpa."""

from __future__ import annotations

import contextlib

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

from foveate.engine import attach
from foveate.testing import hidden_from, reference_logits
from tests.laws.methods import METHODS
from tests.tiny_models import IMAGE, build, generate, inputs

NAME = "flash_like"
MASKS: list[torch.Tensor | None] = []


def flash_like(module, query, key, value, attention_mask, **kwargs):
    """What flash attention does with its mask: causal from the end, padding keys left out."""
    MASKS.append(attention_mask)
    rows, keys = query.shape[2], key.shape[2]
    visible = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)[None, None]
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, None, :].bool()
        visible = visible | torch.eye(rows, dtype=torch.bool) if rows == keys else visible
    return sdpa_attention_forward(module, query, key, value, visible, **kwargs)


@pytest.fixture
def model():
    AttentionInterface.register(NAME, flash_like)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    model = build.__wrapped__("llava", "sdpa")
    model.get_decoder().config._attn_implementation = NAME
    MASKS.clear()
    yield model
    for interface in (AttentionInterface, AttentionMaskInterface):
        with contextlib.suppress(KeyError):
            del interface._global_mapping[NAME]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["one image", "ragged", "ragged with text only"])
def test_flat_masks(model, method, layout):
    batch = inputs("llava", layout)
    dense = generate(model, batch, 5)
    with attach(model, METHODS["ladder"].__class__(keep=1.0), _always_gather=True):
        same = generate(model, batch, 5)
    assert all(torch.equal(a, b) for a, b in zip(dense.logits, same.logits, strict=True))
    with METHODS[method](model) as pruned:
        out = generate(model, batch, 5)
    assert all(mask is None or mask.ndim == 2 for mask in MASKS)
    gone = hidden_from(pruned.report, batch["input_ids"] == IMAGE)
    compacted = METHODS[method].compact_cache
    expected = reference_logits(build("llava", "sdpa"), batch, out.sequences[:, :-1], gone, compacted)
    torch.testing.assert_close(torch.stack(out.logits, 1), expected, atol=1e-4, rtol=0)
