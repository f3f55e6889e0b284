"""Tiny models whose layers see a window of the last tokens, shorter than the test prompts."""

from __future__ import annotations

import functools

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from foveate.families import FAMILIES, Family
from tests.models.build import IMAGE, LLAVA, inputs, make
from tests.models.sizes import MROPE, QWEN_IDS, QWEN_VISION, TEXT

WINDOW = 12  # of prompts of 25 tokens and more
EVERY_THIRD = ["sliding_attention", "sliding_attention", "full_attention"] * 2


def _mistral() -> tuple[type[PreTrainedModel], object]:
    text = dict(TEXT, model_type="mistral", sliding_window=WINDOW)
    return LlavaForConditionalGeneration, LlavaConfig(**LLAVA, text_config=text)


def _qwen2() -> tuple[type[PreTrainedModel], object]:
    text = dict(TEXT, model_type="qwen2", sliding_window=WINDOW, use_sliding_window=True, layer_types=EVERY_THIRD)
    return LlavaForConditionalGeneration, LlavaConfig(**LLAVA, text_config=text)


def _qwen2_5_vl() -> tuple[type[PreTrainedModel], object]:
    text = dict(TEXT, rope_parameters=MROPE, sliding_window=WINDOW, use_sliding_window=True, layer_types=EVERY_THIRD)
    vision = dict(QWEN_VISION, window_size=16, fullatt_block_indexes=[1])
    return Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(vision_config=vision, text_config=text, **QWEN_IDS)


def _gemma3() -> tuple[type[PreTrainedModel], object]:
    vision = dict(
        model_type="siglip_vision_model",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        vision_use_head=False,
    )
    text = dict(TEXT, head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=16, layer_types=EVERY_THIRD)
    ids = dict(image_token_index=IMAGE, image_token_id=IMAGE, boi_token_index=92, eoi_token_index=93)
    return Gemma3ForConditionalGeneration, Gemma3Config(
        vision_config=vision, text_config=text, mm_tokens_per_image=16, **ids
    )


BUILDERS = {"mistral": _mistral, "qwen2": _qwen2, "qwen2_5_vl": _qwen2_5_vl, "gemma3": _gemma3}
FAMILY = {
    "mistral": FAMILIES["llava"],
    "qwen2": FAMILIES["llava"],
    "qwen2_5_vl": FAMILIES["qwen2_5_vl"],
    "gemma3": Family("gemma3", "Gemma 3", "google/gemma-3-4b-it"),
}


@functools.cache
def build(name: str, attention: str = "sdpa") -> PreTrainedModel:
    return make(*BUILDERS[name](), attention)


def window_inputs(name: str, layout: str | list) -> dict[str, torch.Tensor]:
    batch = inputs(name if name.startswith("qwen2_5") else "llava", layout)
    if name == "gemma3":
        batch["token_type_ids"] = (batch["input_ids"] == IMAGE).long()
    return batch
