"""A tiny model of ERNIE-4.5-VL: other experts for visual tokens, and for those around an image, than for text."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Generator, Tensor

from tests.models.base import TinyFamily
from tests.models.images import (
    FILM_END,
    FILM_START,
    IMAGE,
    QWEN_SIZES,
    SIDE,
    VIDEO,
    VISION_END,
    VISION_START,
    Grid,
    Picture,
)
from tests.models.rows_of_patches import sized_inputs
from tests.models.sizes import QWEN_VISION, TEXT


def _ernie4_5_vl() -> dict:
    vision = {
        name: value for name, value in QWEN_VISION.items() if not name.startswith(("temporal", "out", "in_chans"))
    }
    return dict(
        vision_config=dict(vision, temporal_merge_size=2),
        text_config=dict(
            TEXT,
            rope_parameters=dict(rope_type="default", mrope_section=[3, 3, 2], rope_theta=10000.0),
            moe_intermediate_size=[32, 16],
            moe_k=4,  # all: else experts get as much padding as routes to them, and round what else they get otherwise
            moe_num_experts=4,
            moe_num_shared_experts=1,
        ),
        image_start_token_id=VISION_START,
        image_end_token_id=VISION_END,
        image_token_id=IMAGE,
        video_start_token_id=FILM_START,
        video_end_token_id=FILM_END,
        video_token_id=VIDEO,
    )


def _picture(number: int, generator: Generator, several: bool) -> Picture:
    """Patches in merge groups, without a second frame in them."""
    high, wide = QWEN_SIZES[number % 2]
    pixels = torch.randn(high * wide, 3 * 4 * 4, generator=generator)
    ids = [VISION_START, *[IMAGE] * (high * wide // 4), VISION_END]
    return Picture(ids, pixels, (Grid(high // 2, wide // 2),), (1, high, wide))


def _film(generator: Generator) -> Picture:
    """Four frames, of two of which the resampler makes one."""
    pixels = torch.randn(4 * 8 * 8, 3 * 4 * 4, generator=generator)
    return Picture([FILM_START, *[VIDEO] * 32, FILM_END], pixels, (SIDE, SIDE), (4, 8, 8), video=True)


def _types(ids: Tensor, video: Tensor) -> dict[str, Tensor]:
    """What each token is, for its position and for its experts: to those also the tokens around are visual."""

    def types(images: list[int], videos: list[int]) -> Tensor:
        return torch.isin(ids, torch.tensor(images)).int() + 2 * torch.isin(ids, torch.tensor(videos)).int()

    return {
        "mm_token_type_ids": types([IMAGE], [VIDEO]),
        "moe_mm_token_type_ids": types([IMAGE, VISION_START, VISION_END], [VIDEO, FILM_START, FILM_END]),
    }


def _average(model: Any) -> list[Any]:
    """The resampler averages merge groups, and then the frames that it itself puts beside one another."""

    def mean(module: Any, args: tuple, out: Tensor) -> Tensor:
        both = module._temporal_slicing(args[0].view(-1, 4, args[0].shape[-1]).mean(1), args[1])
        return torch.nn.functional.pad((both[:, :32] + both[:, 32:]) / 2, (0, out.shape[-1] - 32))

    return [
        model.model.vision_tower.ln.register_forward_hook(lambda _, args, out: args[0]),
        model.model.resampler_model.register_forward_hook(mean),
    ]


def _can_be_described() -> bool:
    """5.4.0 refuses what its own config says by default."""
    try:
        return bool(transformers.Ernie4_5_VLMoeConfig())
    except StrictDataclassError:
        return False


FAMILIES = {
    "ernie4_5_vl_moe": TinyFamily(
        "Ernie4_5_VLMoeForConditionalGeneration",
        "Ernie4_5_VLMoeConfig",
        _ernie4_5_vl,
        _picture,
        sized_inputs,
        _film,
        types=_types,
        needs=_can_be_described,
        average=_average,
    ),
}
