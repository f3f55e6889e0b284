"""Families that cut an image into tiles, and checkpoints of such families with other encoders and decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Generator, Tensor

from tests.models.base import TinyFamily
from tests.models.images import (
    IMAGE,
    PART,
    SIDE,
    VIDEO,
    VISION_END,
    VISION_START,
    Picture,
    model_inputs,
    picture,
)
from tests.models.sizes import CROP_VISION, TEXT


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


def _any_encoder() -> bool:
    """Whether its config takes other encoders than timm's: not in 5.4."""
    config = transformers.PerceptionLMConfig(**_perception_lm())
    return isinstance(config.vision_config, transformers.CLIPVisionConfig)


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


def _granite_vision() -> dict:
    """Granite Vision 3.x: SigLIP, several of its blocks joined, and a Granite decoder, all as a LLaVA-NeXT."""
    return dict(
        vision_config=dict(CROP_VISION, model_type="siglip_vision_model", patch_size=8, vision_use_head=False),
        text_config=dict(
            TEXT,
            model_type="granite",
            attention_multiplier=0.1,
            embedding_multiplier=2.0,
            residual_multiplier=0.5,
            logits_scaling=2.0,
        ),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_layer=[-3, -2, -1],
        vision_feature_select_strategy="full",
        image_seq_length=16,
        multimodal_projector_bias=True,
        projector_hidden_act="gelu",
        use_image_newline_parameter=True,
    )


def _tiles_of_a_grid(number: int, generator: Generator, several: bool) -> Picture:
    """As LLaVA-NeXT's."""
    return picture("llava_next", number, generator, several)


def _pixels_and_sizes(samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    return model_inputs("llava_next", samples)


def _internvl3_5(text: dict) -> dict:
    """InternVL3.5: its vision encoder as before, around Qwen3 or one of two mixtures of experts."""
    return dict(
        vision_config=dict(CROP_VISION, image_size=[32, 32], patch_size=[4, 4]),
        text_config=dict(TEXT, head_dim=16, **text),
        image_token_id=IMAGE,
        image_seq_length=16,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


QWEN3_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True)
# windows, and in each head a score that takes its share of the attention (sinks)
GPT_OSS = dict(
    num_local_experts=4,
    num_experts_per_tok=2,
    sliding_window=12,
    layer_types=["sliding_attention", "full_attention"] * 3,
    rope_parameters=dict(rope_type="default", rope_theta=150000.0),
)


def _with_class_token(tiles: list[Tensor]) -> list[Tensor]:
    """One call: (tiles, 1 + patches, 3)."""
    return [torch.nn.functional.pad(torch.stack(tiles), (0, 0, 1, 0), value=-99)]


def _tile_codes(seen: Sequence[Picture], code: Callable[..., Tensor]) -> list[Tensor]:
    """The same for each tile or frame of an image or video."""
    return _with_class_token([code(one, 8, 8) for one in seen for _ in one.grids])


def _average_squares(model: Any) -> list[Any]:
    """PerceptionLM's projector averages squares of what it makes of each patch."""

    def average(module: Any, args: tuple, out: Tensor) -> Tensor:
        mean = args[0].reshape(-1, 4, 2, 4, 2, 32).mean((2, 4)).flatten(1, 2)
        return torch.nn.functional.pad(mean, (0, out.shape[-1] - 32))

    return [model.model.multi_modal_projector.register_forward_hook(average)]


def _take_last(model: Any) -> list[Any]:
    """Several blocks side by side, the last of them behind the others."""

    def last(module: Any, args: tuple, out: Tensor) -> Tensor:
        return torch.nn.functional.pad(args[0][..., -32:], (0, out.shape[-1] - 32))

    return [model.model.multi_modal_projector.register_forward_hook(last)]


def _tiles(number: int, generator: Generator, several: bool) -> Picture:
    """As InternVL3's."""
    return picture("internvl", number, generator, several)


def _internvl(text: dict, eager_only: bool = False) -> TinyFamily:
    return TinyFamily(
        model="InternVLForConditionalGeneration",
        config="InternVLConfig",
        settings=lambda: _internvl3_5(text),
        picture=_tiles,
        inputs=_pixels,
        variant=True,
        relative=True,
        eager_only=eager_only,
        codes=_tile_codes,
    )


FAMILIES = {
    "perception_lm": TinyFamily(
        model="PerceptionLMForConditionalGeneration",
        config="PerceptionLMConfig",
        settings=_perception_lm,
        picture=_whole_and_tiles,
        inputs=_pixels,
        film=_frames,
        needs=_any_encoder,
        relative=True,
        codes=_tile_codes,
        average=_average_squares,
    ),
    "granite_vision": TinyFamily(
        model="LlavaNextForConditionalGeneration",
        config="LlavaNextConfig",
        settings=_granite_vision,
        picture=_tiles_of_a_grid,
        inputs=_pixels_and_sizes,
        variant=True,
        relative=True,
        merged=1,
        average=_take_last,
    ),
    "internvl3_5": _internvl(dict(model_type="qwen3")),
    "internvl3_5_moe": _internvl(dict(QWEN3_EXPERTS, model_type="qwen3_moe")),
    "internvl3_5_gpt_oss": _internvl(dict(GPT_OSS, model_type="gpt_oss"), eager_only=True),
}
