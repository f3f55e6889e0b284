"""Aya Vision: tiles and a thumbnail as in InternVL, each a run of tokens of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foveate.families.grids import Grid, Run
from foveate.families.internvl import InternVL


@dataclass(frozen=True)
class AyaVision(InternVL):
    """Differs from InternVL in what tells where an image ends: the token before its thumbnail, the same for all."""

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size // config.downsample_factor
        if any(run.length != side * side for run in runs):
            return None
        whole = Grid(side, side)
        images: list[tuple[Grid, ...]] = []
        tiles = 0
        for number, run in enumerate(runs):
            after = runs[number + 1] if number + 1 < len(runs) else None
            if self.ends_image(run, after, runs):
                images.append((dataclasses.replace(whole, region=None),) * tiles + (whole,))
                tiles = 0
            else:
                tiles += 1
        return images

    def merge_patches(self, config: Any, output: Tensor, projected: Tensor) -> Tensor:
        return super().merge_patches(config, output, projected.flatten(1, -2))  # (tiles, rows, columns, D)

    def ends_image(self, run: Run, after: Run | None, runs: Sequence[Run]) -> bool:
        """Whether the image ends with this run; a sample's last run always ends one."""
        last = next(other for other in reversed(runs) if other.sample == run.sample)
        return run.before == last.before


@dataclass(frozen=True)
class Cohere2Vision(AyaVision):
    """Differs from Aya Vision in what lies between the tiles of an image: one token; between images there are more."""

    def ends_image(self, run: Run, after: Run | None, runs: Sequence[Run]) -> bool:
        return after is None or after.sample != run.sample or after.start != run.start + run.length + 1

    def place(self, image: tuple[Grid, ...], size: tuple[int, int], processor: Any) -> tuple[Grid, ...]:
        return image  # its processor chooses among shapes of tiles by another rule, which we do not know


AYA_VISION = AyaVision("aya_vision", "Aya Vision", "CohereLabs/aya-vision-8b")
COHERE2_VISION = Cohere2Vision("cohere2_vision", "Command A Vision", "CohereLabs/command-a-vision-07-2025")
