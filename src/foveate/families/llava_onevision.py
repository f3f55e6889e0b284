"""LLaVA-OneVision: an image alone as in LLaVA-NeXT, one of several as a square, and videos of small squares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.errors import UnsupportedModelError
from foveate.families.base import Family
from foveate.families.grids import Grid, Run, padded_to_square
from foveate.families.llava_next import fits, from_row_ends, large_grid, rasters, unpack
from foveate.families.turns import frames_of, in_turn

AVERAGED = (
    "the features of LLaVA-OneVision's vision encoder do not line up with its visual tokens, which the model averages "
    "for videos and very large images: use a method that wants no vision features"
)


@dataclass(frozen=True)
class LlavaOnevision(Family):
    """Differs from LLaVA-NeXT in images that share a prompt, very large ones, which the model scales down, and videos.

    One newline token stands after such an image, and after the last frame of a video. `generate()` of current
    transformers hands the base model neither sizes nor pixels, but the encoded images tell all of it.
    """

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        side = config.vision_config.image_size // config.vision_config.patch_size
        encoded = kwargs.get("mm_encoder_outputs") or {}
        if encoded.get("image") is not None:
            images = _from_features(side, encoded["image"].pooler_output)
        else:
            images = _from_sizes(config, kwargs, side)
        frame = Grid(math.ceil(side / 2), math.ceil(side / 2))
        number, frames = frames_of(kwargs, frame.cells)
        video = (frame,) * (frames - 1) + (dataclasses.replace(frame, after=1),)
        return in_turn(runs, images, [video] * number, config.video_token_id)

    def place(self, image: tuple[Grid, ...], size: tuple[int, int], processor: Any) -> tuple[Grid, ...]:
        if len(image) > 1 or not image[0].after:
            return image
        return (dataclasses.replace(image[0], region=padded_to_square(size)),)

    def vision_order(
        self, config: Any, sizes: Tensor | None, projected: Tensor, given: Tensor, grids: Sequence[Grid]
    ) -> Tensor | None:
        """As in LLaVA-NeXT.

        Raises
        ------
        UnsupportedModelError
            When a visual token is no single token of the encoder.
        """
        side = config.vision_config.image_size // config.vision_config.patch_size
        images: list[tuple[Grid, ...]] = []
        for grid in grids:
            if not grid.known:
                return None
            if grid.row_ends:
                images[-1] = (*images[-1], grid)
            else:
                images.append((grid,))
        if any(image[0].height != side for image in images):
            raise UnsupportedModelError(AVERAGED)
        if sum(grid.length for grid in grids) != len(given):
            return None
        orders = unpack(images, side, rasters(config), projected, given, 0)
        if orders is None and not all(_whole(config, side, image) for image in images):
            raise UnsupportedModelError(AVERAGED)
        return None if orders is None else torch.cat(orders)


def _from_features(side: int, features: Sequence[Tensor]) -> list[tuple[Grid, ...]]:
    """Grids of each image, read from the newline tokens in its features: all are like the last."""
    lengths = [len(image) for image in features]
    ends = torch.cat([(image == image[-1]).all(-1) for image in features]).cpu().split(lengths)
    return [
        (Grid(side, side, after=1),) if len(image) == side * side + 1 else from_row_ends(Grid(side, side), image)
        for image in ends
    ]


def _from_sizes(config: Any, kwargs: Mapping[str, Any], side: int) -> list[tuple[Grid, ...]]:
    """Grids of each image from their sizes in pixels and their number in each sample."""
    sizes, together = kwargs.get("image_sizes"), kwargs.get("batch_num_images")
    if sizes is None:
        return []
    alone = [True] * len(sizes) if together is None else [n == 1 for n in together.tolist() for _ in range(n)]
    return [
        (Grid(side, side), _scaled_down(config, large_grid(config, size, side), side))
        if one
        else (Grid(side, side, after=1),)
        for size, one in zip(sizes.tolist(), alone, strict=False)
    ]


def _scaled_down(config: Any, large: Grid, side: int) -> Grid:
    """The large grid as the model leaves it: smaller if it has many more tokens than so many tiles."""
    tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(large.cells / (tiles * side**2))
    return large if ratio <= 1.1 else Grid(int(large.height // ratio), int(large.width // ratio), row_ends=1)


def _whole(config: Any, side: int, image: tuple[Grid, ...]) -> bool:
    """Whether the large grid is tiles with nothing but padding cut away."""
    return len(image) == 1 or any(fits(raster, side, image[1]) for raster in rasters(config))


LLAVA_ONEVISION = LlavaOnevision("llava_onevision", "LLaVA-OneVision", "llava-hf/llava-onevision-qwen2-7b-ov-hf")
