"""DeepSeek-VL: one square an image, padded to it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from foveate.families.base import Family
from foveate.families.grids import Grid, padded_to_square
from foveate.families.vision_encoder import VisionParts


@dataclass(frozen=True)
class DeepSeekVL(Family):
    """Differs from the default in what its grid covers, and in the name of its projector."""

    def place(self, image: tuple[Grid, ...], size: tuple[int, int], processor: Any) -> tuple[Grid, ...]:
        return tuple(dataclasses.replace(grid, region=padded_to_square(size)) for grid in image)

    def vision_parts(self, model: Any) -> VisionParts:
        base = model.base_model
        blocks = [one for name, one in base.vision_model.named_modules() if name.endswith("encoder.layers")]
        return VisionParts(base.vision_model, blocks[0], base.aligner)


DEEPSEEK_VL = DeepSeekVL("deepseek_vl", "DeepSeek-VL", "deepseek-community/deepseek-vl-1.3b-chat")
