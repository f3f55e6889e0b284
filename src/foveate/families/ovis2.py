"""Ovis2: an image small, then in tiles, each a run of tokens of its own after a token that gives its place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from foveate.errors import UnsupportedModelError
from foveate.families.base import Family
from foveate.families.grids import WHOLE, Grid, Region, Run, tiles
from foveate.families.vision_encoder import VisionParts, average_squares


@dataclass(frozen=True)
class Ovis2(Family):
    """Differs from the default in what makes its visual tokens, and in its grids.

    Patches become shares of a visual vocabulary, and those visual tokens by a table of embeddings, which stands where
    other models have a projector. The tokens before a run say what it is: the whole image, the first tile, a tile
    further to the right, or the first of the next row.
    """

    def reserved_ids(self, config: Any) -> tuple[int, ...]:
        # with images the model embeds the tokens around them in another way, wherever they stand
        return (*self.visual_ids(config), *config.visual_indicator_token_ids)

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        side = _side(config.vision_config)
        if any(run.length != side * side or run.token is None for run in runs):
            return None  # given as embeddings, nothing tells where an image ends
        _, first, right, below, *_ = config.visual_indicator_token_ids
        images: list[list[Run]] = []
        for run in runs:
            goes_on = bool(images) and run.sample == images[-1][-1].sample and run.before in (first, right, below)
            images[len(images) - goes_on :] = [[*(images[-1] if goes_on else []), run]]
        return [tuple(Grid(side, side, region=one) for one in _regions(image, right, below)) for image in images]

    def vision_parts(self, model: Any) -> VisionParts:
        tower = model.base_model.vision_tower
        return VisionParts(tower, tower.transformer.encoder.layers, model.base_model.visual_embeddings_table)

    def merge_patches(self, config: Any, output: Tensor, projected: Tensor) -> Tensor:
        side = math.isqrt(output.shape[1])
        stride, tokens = config.vision_config.hidden_stride, projected.shape[-2]
        edge = -(-side // stride)
        if edge * edge != tokens:
            raise UnsupportedModelError(
                f"{side * side} features of the vision encoder do not line up with {tokens} visual tokens of an image"
            )
        rest = edge * stride - side
        if not rest:
            return average_squares(output, tokens)
        # what is missing at the right and at the bottom counts for nothing
        map_ = output.unflatten(1, (side, side))
        sums, counts = (
            pad(one, (0, 0, 0, rest, 0, rest)).unflatten(2, (edge, stride)).unflatten(1, (edge, stride)).sum((2, 4))
            for one in (map_, map_.new_ones(1, side, side, 1))
        )
        return (sums / counts).flatten(0, 2)


def _side(vision: Any) -> int:
    """Tokens along the side of a tile."""
    return -(-(vision.image_size // vision.patch_size) // vision.hidden_stride)


def _regions(runs: Sequence[Run], right: int, below: int) -> Sequence[Region | None]:
    """What each run of an image covers, the whole first."""
    marks = [run.before for run in runs[2:]]
    rows = marks.count(below) + 1
    columns = len(runs[1:]) // rows
    raster = [below if number % columns == 0 else right for number in range(1, len(runs) - 1)] if columns else []
    return [WHOLE, *(tiles(rows, columns) if marks == raster else [None] * len(runs[1:]))]


OVIS2 = Ovis2("ovis2", "Ovis2", "thisisiron/Ovis2-2B-hf")
