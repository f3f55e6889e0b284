"""ERNIE-4.5-VL: Qwen2.5-VL's positions, and layers whose experts for visual tokens are others than those for text.

Which token goes to which experts is an argument of the layers with one entry a token. It counts the tokens around
an image as visual, too, so that it does not say which tokens are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.families.grids import Grid, Run
from foveate.families.qwen import QwenVL, sizes_of
from foveate.families.turns import in_turn
from foveate.families.vision_encoder import VisionParts


@dataclass(frozen=True)
class Ernie4_5VL(QwenVL):
    """Differs in its videos, two frames of which make one grid, and in its resampler, which stands for a projector."""

    token_inputs: ClassVar[Mapping[str, int]] = MappingProxyType({"moe_mm_token_type_ids": -1})

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        given, vision = sizes_of(kwargs), config.vision_config
        if all(sizes is None for sizes in given):
            return super().image_grids(config, kwargs, runs)
        side = vision.spatial_merge_size
        images, videos = (
            []
            if sizes is None
            else [(Grid(high // side, wide // side),) * (time // merged) for time, high, wide in sizes.tolist()]
            for sizes, merged in zip(given, (1, vision.temporal_merge_size), strict=True)
        )
        return in_turn(runs, images, videos, config.video_token_id)

    def vision_parts(self, model: Any) -> VisionParts:
        encoder = model.base_model.vision_tower
        return VisionParts(encoder, encoder.blocks, model.base_model.resampler_model)

    def vision_sizes(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
        return kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]

    def merge_call(self, config: Any, output: Tensor, projected: Tensor, sizes: Tensor | None) -> Tensor:
        if sizes is None:
            return self.merge_patches(config, output, projected)
        vision = config.vision_config
        tokens = output.view(-1, vision.spatial_merge_size**2, output.shape[-1]).mean(1)  # they come in merge groups
        lengths = (sizes.prod(-1) // vision.spatial_merge_size**2).tolist()
        merged = []
        for image, (time, _, _) in zip(tokens.split(lengths), sizes.tolist(), strict=True):
            pairs = time // vision.temporal_merge_size
            if time > 1:
                frames = image.unflatten(0, (time, -1))[: pairs * vision.temporal_merge_size]
                image = frames.unflatten(0, (pairs, -1)).mean(1).flatten(0, 1)
            merged.append(image)
        return torch.cat(merged)


ERNIE4_5_VL = Ernie4_5VL("ernie4_5_vl_moe", "ERNIE-4.5-VL", "baidu/ERNIE-4.5-VL-28B-A3B-PT")
