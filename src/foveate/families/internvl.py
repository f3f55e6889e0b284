"""InternVL: an image is cut into tiles of one size, with a thumbnail of the whole after them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foveate.families.base import Family
from foveate.families.grids import Grid, Run, tiles


@dataclass(frozen=True)
class InternVL(Family):
    """Differs from the default in its grids: a run of tokens is an image, or a video frame, of one or more tiles.

    How many tiles stand side by side is not in the prompt: the image's size decides it.
    """

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        pixels = kwargs.get("pixel_values") if encoded is None else encoded.pooler_output
        if pixels is None or not len(pixels):
            return None
        each, rest = divmod(sum(run.length for run in runs), len(pixels))
        if rest or not each or any(run.length % each for run in runs):
            return None
        whole = Grid.square(each)
        tile = dataclasses.replace(whole, region=None)
        return [(tile,) * (run.length // each - 1) + (whole,) for run in runs]

    def place(self, image: tuple[Grid, ...], size: tuple[int, int], processor: Any) -> tuple[Grid, ...]:
        *parts, whole = image
        if not parts:
            return image
        # as the processor selects: the shape that is most like the image's
        options = [columns for columns in range(1, len(parts) + 1) if len(parts) % columns == 0]
        columns = min(options, key=lambda columns: abs(size[0] / size[1] - columns**2 / len(parts)))
        regions = tiles(len(parts) // columns, columns)
        return (*(dataclasses.replace(part, region=one) for part, one in zip(parts, regions, strict=True)), whole)


INTERNVL = InternVL("internvl", "InternVL3, InternVL3.5", "OpenGVLab/InternVL3-8B-hf")


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
        return image  # its processor selects among shapes of tiles by another rule, which we do not know


AYA_VISION = AyaVision("aya_vision", "Aya Vision", "CohereLabs/aya-vision-8b")
COHERE2_VISION = Cohere2Vision("cohere2_vision", "Command A Vision", "CohereLabs/command-a-vision-07-2025")
