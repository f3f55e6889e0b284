"""Tiny models of the Omni families' thinkers: Qwen's images and videos, and an encoder of sounds beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from torch import Generator, Tensor

from tests.models.base import TinyFamily
from tests.models.images import IMAGE, QWEN_SIZES, SIDE, VIDEO, VISION_END, VISION_START, Grid, Picture
from tests.models.qwen3_and_glm import EXPERTS, VISION
from tests.models.sizes import MROPE, QWEN_VISION, TEXT

SOUND, SOUND_START, SOUND_END = 87, 85, 86
MELS = 8
STARTS = dict(
    vision_start_token_id=VISION_START,
    vision_end_token_id=VISION_END,
    audio_start_token_id=SOUND_START,
    audio_end_token_id=SOUND_END,
    user_token_id=1,
    position_id_per_seconds=4,
)
HEARING = dict(
    num_mel_bins=MELS,
    encoder_layers=2,
    encoder_attention_heads=2,
    encoder_ffn_dim=32,
    d_model=16,
    max_source_positions=64,
    output_dim=64,
)


def _qwen2_5_omni() -> dict:
    return dict(
        vision_config=dict(QWEN_VISION, window_size=16, fullatt_block_indexes=[1]),
        text_config=dict(TEXT, rope_parameters=MROPE),
        audio_config=dict(HEARING, n_window=8),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=SOUND,
        seconds_per_chunk=1,
        **STARTS,
    )


def _qwen3_omni_moe() -> dict:
    return dict(
        vision_config=dict(VISION, deepstack_visual_indexes=[0, 1, 2]),
        text_config=dict(TEXT, **EXPERTS, head_dim=16, rope_parameters=MROPE),
        audio_config=dict(HEARING, n_window=50, n_window_infer=100, conv_chunksize=16, downsample_hidden_size=8),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=SOUND,
        **STARTS,
    )


def omni_picture(number: int, generator: Generator, several: bool) -> Picture:
    """Patches in merge groups, as Qwen2.5-VL has them."""
    high, wide = QWEN_SIZES[number % 2]
    pixels = torch.randn(high * wide, 3 * 2 * 4 * 4, generator=generator)
    ids = [VISION_START, *[IMAGE] * (high * wide // 4), VISION_END]
    return Picture(ids, pixels, (Grid(high // 2, wide // 2),), (1, high, wide))


def omni_film(generator: Generator) -> Picture:
    """Two frames in one run: when they were is in the positions alone."""
    pixels = torch.randn(2 * 8 * 8, 3 * 2 * 4 * 4, generator=generator)
    return Picture([VISION_START, *[VIDEO] * 32, VISION_END], pixels, (SIDE, SIDE), (2, 8, 8), video=True)


def omni_inputs(samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    """Pixels and their sizes; for a video also the seconds between two frames."""
    images = [one for sample in samples for one in sample if not one.video]
    videos = [one for sample in samples for one in sample if one.video]
    batch = {}
    if images:
        batch["pixel_values"] = torch.cat([one.pixels for one in images])
        batch["image_grid_thw"] = torch.tensor([one.size for one in images])
    if videos:
        batch["pixel_values_videos"] = torch.cat([one.pixels for one in videos])
        batch["video_grid_thw"] = torch.tensor([one.size for one in videos])
        batch["video_second_per_grid"] = torch.ones(len(videos))
    return batch


def _has_a_base() -> bool:
    """Older releases have encoders and head in one module, without a model of their own between them."""
    return hasattr(transformers.models.qwen2_5_omni.modeling_qwen2_5_omni, "Qwen2_5OmniThinkerModel")


OMNI = dict(picture=omni_picture, inputs=omni_inputs, film=omni_film, needs=_has_a_base, relative=True)
FAMILIES = {
    "qwen2_5_omni_thinker": TinyFamily(
        "Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2_5OmniThinkerConfig", _qwen2_5_omni, **OMNI
    ),
    "qwen3_omni_moe_thinker": TinyFamily(
        "Qwen3OmniMoeThinkerForConditionalGeneration", "Qwen3OmniMoeThinkerConfig", _qwen3_omni_moe, **OMNI
    ),
}
