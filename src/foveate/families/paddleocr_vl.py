"""PaddleOCR-VL: Qwen2.5-VL's grids and positions, around an encoder that takes its patches row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.families.qwen import QwenVL
from foveate.families.vision_encoder import VisionParts, find_vision_parts


@dataclass(frozen=True)
class PaddleOCRVL(QwenVL):
    """Differs in its projector, which merges the patches itself: they come in raster order, not in merge groups."""

    def vision_parts(self, model: Any) -> VisionParts:
        return find_vision_parts(model, ("projector",))

    def vision_sizes(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
        sizes = kwargs.get("grid_thw", kwargs.get("image_grid_thw"))
        return sizes if sizes is not None or len(args) < 2 else args[1]

    def merge_call(self, config: Any, output: Tensor, projected: Tensor, sizes: Tensor | None) -> Tensor:
        if sizes is None:
            return self.merge_patches(config, output, projected)
        merge = config.vision_config.spatial_merge_size
        images = output.reshape(-1, output.shape[-1]).split(sizes.prod(-1).tolist())
        means = [
            image.view(time, high // merge, merge, wide // merge, merge, -1).mean((2, 4)).flatten(0, 2)
            for image, (time, high, wide) in zip(images, sizes.tolist(), strict=True)
        ]
        return torch.cat(means)


PADDLEOCR_VL = PaddleOCRVL("paddleocr_vl", "PaddleOCR-VL", "PaddlePaddle/PaddleOCR-VL")
