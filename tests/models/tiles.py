"""Families that cut an image into tiles, and checkpoints of such families with other encoders and decoders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from foveate.families import Grid
from tests.models.base import TinyFamily
from tests.tiny_pictures import IMAGE, PART, SIDE, VIDEO, VISION_END, VISION_START, Picture
from tests.tiny_sizes import CROP_VISION, TEXT


def _perception_lm() -> dict:
    """Its own vision encoder comes from timm, and is named by `model_args`; CLIP's has a class token, too."""
    clip = dict(CROP_VISION, model_type="clip_vision_model", patch_size=4, projection_dim=32)
    return dict(
        vision_config=dict(clip, model_args={"embed_dim": 32}),
        text_config=dict(TEXT, model_type="llama"),
        projector_pooling_ratio=2,
        vision_use_cls_token=True,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )


def _whole_and_tiles(number: int, generator: Generator, several: bool) -> Picture:
    """All images of a call have as many tiles."""
    pixels = torch.randn(1, 3, 3, 32, 32, generator=generator)
    return Picture([VISION_START, *[IMAGE] * 48, VISION_END], pixels, (SIDE, PART, PART))


def _frames(generator: Generator) -> Picture:
    pixels = torch.randn(1, 2, 3, 32, 32, generator=generator)
    return Picture([VISION_START, *[VIDEO] * 32, VISION_END], pixels, (SIDE, SIDE), video=True)


def _pixels(samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    """Pixels of the images, and of the videos."""
    kinds = {"pixel_values": False, "pixel_values_videos": True}
    found = {name: [one.pixels for row in samples for one in row if one.video == kind] for name, kind in kinds.items()}
    return {name: torch.cat(pixels) for name, pixels in found.items() if pixels}


FAMILIES = {
    "perception_lm": TinyFamily(
        model="PerceptionLMForConditionalGeneration",
        config="PerceptionLMConfig",
        settings=_perception_lm,
        picture=_whole_and_tiles,
        inputs=_pixels,
        film=_frames,
        relative=True,
    ),
}
