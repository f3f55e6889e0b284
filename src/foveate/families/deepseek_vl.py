"""DeepSeek-VL: one square an image, padded to it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from foveate.families.base import Family
from foveate.families.grids import Grid, padded_to_square


@dataclass(frozen=True)
class DeepSeekVL(Family):
    """Differs from the default in what its grid covers."""

    def place(self, image: tuple[Grid, ...], size: tuple[int, int], processor: Any) -> tuple[Grid, ...]:
        return tuple(dataclasses.replace(grid, region=padded_to_square(size)) for grid in image)


DEEPSEEK_VL = DeepSeekVL("deepseek_vl", "DeepSeek-VL", "deepseek-community/deepseek-vl-1.3b-chat")
