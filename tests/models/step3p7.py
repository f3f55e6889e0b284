"""A tiny model of Step-3.7: tiles in runs of their own, smaller than the whole image behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from tests.models.base import TinyFamily
from tests.models.images import AROUND, CROPS, IMAGE, LINE, SIDE, VISION_END, VISION_START, WHOLE, Picture, crop_grids
from tests.models.sizes import CROP_VISION, LAYERS, TEXT


def _step3p7() -> dict:
    kinds = ["sliding_attention", "full_attention"] * 3  # with 6 and with 4 heads
    text = dict(
        TEXT,
        head_dim=16,
        n_routed_experts=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        share_expert_dim=32,
        mlp_layer_types=["dense"] + ["sparse"] * (LAYERS - 1),
        layer_types=kinds,
        sliding_window=12,
        num_sliding_attention_heads=6,
        rope_theta=[10000.0 if kind.startswith("sliding") else 500000.0 for kind in kinds],
        partial_rotary_factors=[1.0 if kind.startswith("sliding") else 0.5 for kind in kinds],
    )
    vision = dict(CROP_VISION, image_size=64, patch_size=4, mlp_ratio=1.5, max_position_embeddings=256)
    return dict(vision_config=vision, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False)


def _picture(number: int, generator: Generator, several: bool) -> Picture:
    """The whole image, and behind it its tiles: a quarter as large, so that three quarters of each go unused."""
    rows, columns = CROPS[number % 3]
    ids = []
    for row in range(rows):
        ids += [AROUND, *[IMAGE] * 4, WHOLE] * columns + [LINE] * (row < rows - 1)
    ids += [VISION_START, *[IMAGE] * 16, VISION_END]
    tiles = [dataclasses.replace(grid, height=2, width=2) for grid in crop_grids(rows, columns)]
    pixels = torch.randn(1 + len(tiles), 3, 64, 64, generator=generator)
    return Picture(ids, pixels, (*tiles, SIDE))


def _inputs(samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    images = [one for sample in samples for one in sample]
    if not images:
        return {}
    batch = {
        "pixel_values": torch.cat([image.pixels[:1] for image in images]),
        "num_local_patches": torch.tensor([len(image.pixels) - 1 for image in images]),
    }
    tiles = torch.cat([image.pixels[1:, :, :32, :32] for image in images])
    return batch | ({"pixel_values_local": tiles} if len(tiles) else {})


def _average(model: Any) -> list[Any]:
    """Two convolutions, each of which halves rows and columns, average them, and the projector leaves that."""

    def halve(module: Any, args: tuple, out: Tensor) -> Tensor:
        half = torch.nn.functional.avg_pool2d(args[0], 2)
        return torch.nn.functional.pad(half, (0, 0, 0, 0, 0, out.shape[1] - half.shape[1]))

    def leave(module: Any, args: tuple, out: Tensor) -> Tensor:
        return torch.nn.functional.pad(args[0][..., :32], (0, out.shape[-1] - 32))

    encoder = model.model.vision_model
    return [
        encoder.downsampler1.register_forward_hook(halve),
        encoder.downsampler2.register_forward_hook(halve),
        model.model.multi_modal_projector.register_forward_hook(leave),
    ]


FAMILIES = {
    "step3p7": TinyFamily(
        "Step3p7ForConditionalGeneration",
        "Step3p7Config",
        _step3p7,
        _picture,
        _inputs,
        merged=4,
        average=_average,
    ),
}
