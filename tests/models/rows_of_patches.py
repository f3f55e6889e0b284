"""Tiny models that take patches of any image and give its tokens plain positions: EXAONE-4.5, Kimi-K2.6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Generator, Tensor

from tests.models.base import TinyFamily
from tests.models.images import (
    IMAGE,
    QWEN_SIZES,
    SIDE,
    STAMP,
    VIDEO,
    VISION_END,
    VISION_START,
    Grid,
    Picture,
)
from tests.models.omni import omni_film, omni_picture
from tests.models.sizes import QWEN_IDS, QWEN_VISION, TEXT

WINDOWS = dict(layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2, sliding_window=12)


def _exaone4_5() -> dict:
    return dict(
        vision_config=dict(QWEN_VISION, window_size=16, fullatt_block_indexes=[1], num_key_value_heads=2),
        text_config=dict(TEXT, **WINDOWS, model_type="exaone4"),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )


def _kimi_k25() -> dict:
    latent = dict(kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=20)
    experts = dict(
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        num_mtp_layers=0,
    )
    text = dict(TEXT, **latent, **experts, model_type="deepseek_v3")
    return dict(
        vision_config=dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            patch_size=4,
            pos_emb_height=8,
            pos_emb_width=8,
        ),
        text_config=dict(text, num_key_value_heads=4),
        projection_hidden_size=32,
        tie_word_embeddings=False,
        **QWEN_IDS,
    )


def sized_inputs(samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    """Pixels of the patches, and how many there are along time, height and width."""
    batch = {}
    for kind, pixels, sizes in (
        (False, "pixel_values", "image_grid_thw"),
        (True, "pixel_values_videos", "video_grid_thw"),
    ):
        seen = [one for sample in samples for one in sample if one.video == kind]
        if seen:
            batch[pixels] = torch.cat([one.pixels for one in seen])
            batch[sizes] = torch.tensor([one.size for one in seen])
    return batch


def kimi_picture(number: int, generator: Generator, several: bool) -> Picture:
    """Square patches of one frame, row by row."""
    high, wide = QWEN_SIZES[number % 2]
    pixels = torch.randn(high * wide, 3, 4, 4, generator=generator)
    ids = [VISION_START, *[IMAGE] * (high * wide // 4), VISION_END]
    return Picture(ids, pixels, (Grid(high // 2, wide // 2),), (1, high, wide))


def kimi_film(generator: Generator) -> Picture:
    """A chunk of frames, averaged over time: three, or one where transformers cannot split the averages."""
    frames = 3 if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else 1
    pixels = torch.randn(frames * 8 * 8, 3, 4, 4, generator=generator)
    return Picture([STAMP, VISION_START, *[VIDEO] * 16, VISION_END], pixels, (SIDE,), (frames, 8, 8), video=True)


def _average(model: Any) -> list[Any]:
    """The norm in front of the projector leaves things as they are, and the projector averages."""

    def mean(module: Any, args: tuple, out: Tensor) -> Tensor:
        return torch.nn.functional.pad(args[0].mean(1, keepdim=True), (0, out.shape[-1] - args[0].shape[-1]))

    return [
        model.model.vision_tower.final_layernorm.register_forward_hook(lambda _, args, out: args[0]),
        model.model.mm_projector.register_forward_hook(mean),
    ]


FAMILIES = {
    "exaone4_5": TinyFamily(
        "Exaone4_5_ForConditionalGeneration", "Exaone4_5_Config", _exaone4_5, omni_picture, sized_inputs, omni_film
    ),
    "kimi_k25": TinyFamily(
        "Kimi_K25ForConditionalGeneration",
        "Kimi_K25Config",
        _kimi_k25,
        kimi_picture,
        sized_inputs,
        kimi_film,
        packed=True,
        average=_average,
    ),
}
