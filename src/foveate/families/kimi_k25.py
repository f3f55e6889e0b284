"""Kimi-K2.5 and K2.6: images of any size around DeepSeek-V3's decoder with latent attention.

A video is cut into chunks of a few frames, each of them averaged over time and with its time in front: the prompt does
not tell which chunks are one video's, so that each counts as an image of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.families.base import Family
from foveate.families.grids import Grid, Run
from foveate.families.qwen import sizes_of
from foveate.families.turns import in_turn
from foveate.families.vision_encoder import VisionParts


@dataclass(frozen=True)
class KimiK25(Family):
    """Differs from the default in its grids, and in its encoder: the patches of all images in a row."""

    wants_sizes: ClassVar[bool] = True

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        down, across = config.vision_config.merge_kernel_size
        images, videos = (
            [] if sizes is None else [(Grid(high // down, wide // across),) for _, high, wide in sizes.tolist()]
            for sizes in sizes_of(kwargs)
        )
        return in_turn(runs, images, videos, config.video_token_id) or None

    def vision_parts(self, model: Any) -> VisionParts:
        tower = model.base_model.vision_tower
        return VisionParts(tower, tower.layers, model.base_model.mm_projector)

    def vision_sizes(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
        return kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]

    def merge_call(self, config: Any, output: Tensor, projected: Tensor, sizes: Tensor | None) -> Tensor:
        if sizes is None:
            return self.merge_patches(config, output, projected)
        down, across = config.vision_config.merge_kernel_size
        merged, first = [], 0
        for time, high, wide in sizes.tolist():
            frames = output[first : first + time * high * wide].view(
                time, high // down, down, wide // across, across, -1
            )
            merged.append(frames.mean((0, 2, 4)).flatten(0, 1))
            first += time * high * wide
        return torch.cat(merged)


KIMI_K25 = KimiK25("kimi_k25", "Kimi-K2.6", "moonshotai/Kimi-K2.6")
