"""The flash path on CPU: a backend that takes flash attention's flat (B, K) padding masks, and answers like sdpa."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

from foveate import Random
from foveate.engine import attach
from foveate.engine.arguments import cache_of, with_cache
from foveate.engine.compat import takes_flat_masks
from foveate.errors import UnsupportedCacheError, UnsupportedModelError
from foveate.testing import hidden_from, reference_logits
from tests.engine import window_models
from tests.laws.methods import METHODS
from tests.models.build import IMAGE, build, build_anew, generate, inputs

NAME = "flash_like"
MASKS: list[torch.Tensor | None] = []


def flash_like(module, query, key, value, attention_mask, **kwargs):
    """What flash attention does with its mask: causal from the end, padding left out, windows of what is left."""
    MASKS.append(attention_mask)
    rows, keys = query.shape[2], key.shape[2]
    visible = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)[None, None]
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, None, :].bool()
        visible = visible | torch.eye(rows, dtype=torch.bool) if rows == keys else visible
    if kwargs.get("sliding_window") is not None:
        there = torch.ones(len(key), keys) if attention_mask is None else attention_mask
        rank = there.cumsum(-1)
        visible = visible & (rank[:, None, None, :] > rank[:, None, -rows:, None] - kwargs["sliding_window"])
    return sdpa_attention_forward(module, query, key, value, visible, **kwargs)


def with_flash(model):
    """The model with a decoder that believes in flash attention."""
    model.get_decoder().config._attn_implementation = NAME
    return model


@pytest.fixture(autouse=True)
def registered():
    AttentionInterface.register(NAME, flash_like)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    MASKS.clear()
    yield
    for interface in (AttentionInterface, AttentionMaskInterface):
        with contextlib.suppress(KeyError):
            del interface._global_mapping[NAME]


CASES = [("llava", method) for method in METHODS]
CASES += [(family, method) for family in ("qwen2_5_vl", "qwen3_vl") for method in ("fastv late", "ladder")]


@pytest.mark.parametrize(("family", "method"), CASES)
@pytest.mark.parametrize("layout", ["one image", "ragged", "ragged with text only"])
def test_flat_masks(family, method, layout):
    model, batch = with_flash(build_anew(family, "sdpa")), inputs(family, layout)
    dense = generate(model, batch, 5)
    with attach(model, METHODS["ladder"].__class__(keep=1.0), _always_gather=True):
        same = generate(model, batch, 5)
    assert all(torch.equal(a, b) for a, b in zip(dense.logits, same.logits, strict=True))
    with METHODS[method](model) as pruned:
        out = generate(model, batch, 5)
    assert all(mask is None or mask.ndim == 2 for mask in MASKS)
    gone = hidden_from(pruned.report, batch["input_ids"] == IMAGE)
    compacted = METHODS[method].compact_cache
    expected = reference_logits(
        build(family, "sdpa"), batch, out.sequences[:, :-1], gone, compacted, stages=pruned.report.stages
    )
    torch.testing.assert_close(torch.stack(out.logits, 1), expected, atol=1e-4, rtol=0)


def windowed(window):
    """LLaVA with Mistral, sdpa and flash, and a prompt of 25 tokens."""
    make = window_models.build.__wrapped__
    models = [make("mistral", "sdpa"), with_flash(make("mistral", "sdpa"))]
    for model in models:
        model.get_decoder().config.sliding_window = window
    return *models, inputs("llava", "one image")


@pytest.mark.parametrize("layout", ["one image", "ragged"])
def test_a_window_that_the_answer_outgrows(layout):
    """One row at a time, a mask can say what the kernel's own count of what is left would not."""
    sdpa, flash, _ = windowed(46)
    batch = inputs("llava", layout)
    steps = 46 - batch["input_ids"].shape[1] + 6
    dense = [generate(model, batch, steps) for model in (sdpa, flash)]
    for ours, theirs in zip(dense[1].logits, dense[0].logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    for method in ("ladder", "random", "btp logits compacted"):
        outputs = []
        for model in (sdpa, flash):
            with METHODS[method](model):
                outputs.append(generate(model, batch, steps))
        for ours, theirs in zip(outputs[1].logits, outputs[0].logits, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_window_shorter_than_the_prompt_is_refused():
    _, flash, batch = windowed(24)
    cache = DynamicCache(config=flash.config.get_text_config())
    message = "prompt of 25 tokens in layers with a window of 24"
    with pytest.raises(UnsupportedModelError, match=message), Random(keep=0.3)(flash):
        generate(flash, batch, 1, **with_cache(flash, cache))
    assert cache.get_seq_length() == 0
    _, flash, batch = windowed(25)
    with Random(keep=0.3)(flash):
        out = generate(flash, batch, 2)
        more = torch.cat([out.sequences, torch.tensor([[5, 6]])], 1)
        turn = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        with pytest.raises(UnsupportedModelError, match="29 tokens in layers with a window of 25"):
            generate(flash, turn, 1, **with_cache(flash, cache_of(out)))


@pytest.mark.parametrize("attention", [NAME, "flex_attention"])
def test_static_caches_are_refused(attention):
    model = build_anew("llava", "sdpa")
    model.get_decoder().config._attn_implementation = attention
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    message = f"with sdpa and eager attention, not with {attention}"
    with pytest.raises(UnsupportedCacheError, match=message), Random(keep=0.3)(model), torch.no_grad():
        model(**inputs("llava", "one image"), **with_cache(model, cache))


@pytest.mark.parametrize(
    ("name", "flat"),
    [
        ("flash_attention_2", True),
        ("flash_attention_3", True),
        ("kernels-community/flash-attn2", True),
        ("kernels-community/vllm-flash-attn3", True),
        ("sdpa", False),
        ("eager", False),
        ("flex_attention", False),
    ],
)
def test_who_takes_flat_masks(name, flat):
    assert takes_flat_masks(SimpleNamespace(_attn_implementation=name)) is flat
