"""Tiny models of the families of Gemma whose layers share keys and values or take an input of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foveate.families import Grid
from tests.models.base import TinyFamily
from tests.models.images import IMAGE, VIDEO, VISION_END, VISION_START, Picture
from tests.models.qwen3_and_glm import NEWER, gemma4_inputs, gemma4_picture, newer
from tests.models.sizes import TEXT

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


def gemma4_e(kinds: str, shared: int) -> dict:
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


def _gemma4_inputs(samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    images = [one for sample in samples for one in sample]
    return gemma4_inputs(images) if images else {}


class Tower(nn.Module):
    """In the place of Gemma 3n's MobileNet, which only timm has: a map of features of 8 x 8 pixels each."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 32, 8, 8)

    def forward(self, pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.features(pixel_values))


class Gemma3n:
    """Makes the real class around that tower, as `PreTrainedModel` subclasses make themselves."""

    @staticmethod
    def _from_config(config: Any, **options: Any) -> transformers.PreTrainedModel:
        make = transformers.AutoModel.from_config

        def made(part: Any, **settings: Any) -> nn.Module:
            return Tower() if part.model_type == "gemma3n_vision" else make(part, **settings)

        with mock.patch.object(transformers.AutoModel, "from_config", made):
            return transformers.Gemma3nForConditionalGeneration._from_config(config, **options)


class TinyGemma3n(TinyFamily):
    def make(self) -> tuple[Any, object]:
        return Gemma3n, super().make()[1]


WORDS = 88  # ids from here on are images', and from 128 on sounds'


def _gemma3n() -> dict:
    types = [f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding", "full", "full")]
    text = dict(
        TEXT,
        head_dim=16,
        layer_types=types,
        sliding_window=12,
        num_kv_shared_layers=1,
        vocab_size_per_layer_input=WORDS,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        activation_sparsity_pattern=[0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
    )
    audio = dict(
        vocab_size=8,
        vocab_offset=128,
        hidden_size=32,
        conf_num_attention_heads=2,
        conf_num_hidden_layers=1,
        input_feat_size=16,
        sscp_conv_channel_size=(8, 8),
    )
    return dict(
        vision_config=transformers.Gemma3nVisionConfig(hidden_size=32, vocab_size=128 - WORDS, vocab_offset=WORDS),
        text_config=text,
        audio_config=audio,
        vision_soft_tokens_per_image=16,
        image_token_id=IMAGE,
        audio_token_id=127,
    )


def _square(number: int, generator: torch.Generator, several: bool) -> Picture:
    pixels = torch.randn(1, 3, 32, 32, generator=generator)
    return Picture([VISION_START, *[IMAGE] * 16, VISION_END], pixels, (Grid(4, 4),))


def _pixels(samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    images = [one.pixels for sample in samples for one in sample]
    return {"pixel_values": torch.cat(images)} if images else {}


def _shares_by_argument() -> bool:
    """Older Gemma 3n shares through the cache; without one, as the reference runs, its layers make their own keys."""
    return hasattr(transformers.cache_utils, "KVSharingDict")


def _unified() -> dict:
    """As published, without layers that share keys and values."""
    types = [f"{kind}_attention" for kind in ("sliding", "sliding", "full") * 2]
    text = dict(
        TEXT, head_dim=16, global_head_dim=32, num_global_key_value_heads=1, layer_types=types, sliding_window=12
    )
    return dict(
        vision_config=dict(
            patch_size=4, pooling_kernel_size=2, mm_embed_dim=32, mm_posemb_size=16, output_proj_dims=32
        ),
        text_config=dict(text, attention_k_eq_v=True),
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=127,
    )


def _patches(number: int, generator: torch.Generator, several: bool) -> Picture:
    """Patches of 8 x 8 pixels in 36 places; those without one are padding."""
    high, wide = [(4, 6), (6, 6)][number % 2]
    pixels = torch.zeros(1, 36, 3 * 8 * 8)
    pixels[:, : high * wide] = torch.rand(1, high * wide, 3 * 8 * 8, generator=generator)
    return Picture([VISION_START, *[IMAGE] * (high * wide), VISION_END], pixels, (Grid(high, wide),), (high, wide))


def _patch_inputs(samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    images = [one for sample in samples for one in sample]
    if not images:
        return {}
    places = torch.full((len(images), 36, 2), -1)
    for image, place in zip(images, places, strict=True):
        high, wide = image.size
        number = torch.arange(high * wide)
        place[: high * wide] = torch.stack([number % wide, number // wide], -1)
    return {"pixel_values": torch.cat([image.pixels for image in images]), "image_position_ids": places}


def _types(ids: Tensor, video: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).int()}


FAMILIES = {
    "gemma4_unified": TinyFamily(
        "Gemma4UnifiedForConditionalGeneration",
        "Gemma4UnifiedConfig",
        _unified,
        picture=_patches,
        inputs=_patch_inputs,
        types=_types,
        relative=True,
        unseen=True,
    ),
    "gemma3n": TinyGemma3n(
        "Gemma3nForConditionalGeneration",
        "Gemma3nConfig",
        _gemma3n,
        picture=_square,
        inputs=_pixels,
        needs=_shares_by_argument,
        unseen=True,
        placed=True,
        streams=True,
        last_stage=4,
    ),
    "gemma4_e2b": TinyFamily(
        "Gemma4ForConditionalGeneration",
        "Gemma4Config",
        lambda: gemma4_e("ssfsff", 1),
        picture=lambda number, generator, several: gemma4_picture(number, generator),
        inputs=_gemma4_inputs,
        needs=_there,
        variant=True,
        unseen=True,
        last_stage=4,
    ),
}
