"""Qwen2.5-VL: images of any size, their token grids given beside the pixels; multi-axis rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foveate.families.base import Family


@dataclass(frozen=True)
class QwenVL(Family):
    """Differs from the default in how long an image is: time x height x width patches, merged in squares."""

    def image_lengths(self, config: Any, kwargs: Mapping[str, Any], visual_tokens: int) -> list[int] | None:
        grid = kwargs.get("image_grid_thw")
        if grid is not None and kwargs.get("video_grid_thw") is None:
            return (grid.prod(-1) // config.vision_config.spatial_merge_size**2).tolist()
        return super().image_lengths(config, kwargs, visual_tokens)


QWEN2_5_VL = QwenVL("qwen2_5_vl", "Qwen2.5-VL", "Qwen/Qwen2.5-VL-7B-Instruct")
