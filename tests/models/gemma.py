"""Tiny models of the families of Gemma whose layers share keys and values or take an input of their own."""

from __future__ import annotations

import transformers

from tests.models.base import TinyFamily
from tests.tiny_newer import NEWER, gemma4_inputs, gemma4_picture, newer
from tests.tiny_pictures import IMAGE, VIDEO, Picture
from tests.tiny_sizes import TEXT

# Gemma 4's own text settings, with an input for each layer; the last layer reads the keys of the one before it
SHARED = dict(
    head_dim=16,
    global_head_dim=32,
    num_global_key_value_heads=1,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=128,
    use_bidirectional_attention=None,
    sliding_window=12,
)


def _gemma4_e(kinds: str, shared: int) -> dict:
    """Settings of a small model, whose layers are "s"liding or "f"ull, and the last `shared` of which share keys."""
    types = [f"{'sliding' if kind == 's' else 'full'}_attention" for kind in kinds]
    text = dict(TEXT, **SHARED, layer_types=types, num_kv_shared_layers=shared)
    config = newer("gemma4")[1].to_dict()
    return dict(
        vision_config=config["vision_config"],
        text_config=text,
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=127,
    )


def _there() -> bool:
    return "gemma4" in NEWER


FAMILIES = {
    "gemma4_e2b": TinyFamily(
        "Gemma4ForConditionalGeneration",
        "Gemma4Config",
        lambda: _gemma4_e("ssfsff", 1),
        picture=lambda number, generator, several: gemma4_picture(number, generator),
        inputs=lambda samples: _gemma4_inputs(samples),
        needs=_there,
        variant=True,
        unseen=True,
        last_stage=4,
    ),
}


def _gemma4_inputs(samples) -> dict:
    images: list[Picture] = [one for sample in samples for one in sample]
    return gemma4_inputs(images) if images else {}
