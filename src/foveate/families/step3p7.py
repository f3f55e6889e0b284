"""Step-3.7: an image is cut into tiles, with the whole of it after them; each is a run of tokens of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.families.base import Family
from foveate.families.grids import WHOLE, Grid, Run, tiles

BESIDE = 2  # tokens between two tiles: the end of one and the start of the other; after a row there is one more


@dataclass(frozen=True)
class Step3p7(Family):
    """Differs from the default in its grids, and in the order of its encoder: all wholes come first, then tiles."""

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        left = list(runs)
        images = []
        if encoded is not None:
            for feature in encoded.pooler_output:
                own: list[Run] = []
                while left and sum(run.length for run in own) < len(feature):
                    own.append(left.pop(0))
                images.append(own)
        elif kwargs.get("pixel_values") is not None:
            counts = kwargs.get("num_local_patches")
            for count in [0] * len(kwargs["pixel_values"]) if counts is None else [int(count) for count in counts]:
                images.append(left[: count + 1])
                left = left[count + 1 :]
        return None if left or not images or not all(images) else [_grids(own) for own in images]

    def place(self, image: tuple[Grid, ...], size: tuple[int, int], processor: Any) -> tuple[Grid, ...]:
        if min(size) >= 32 or max(size) <= 4 * min(size):
            return image
        # thin strips are padded on the right or below, to a square
        far = [max(size) / edge for edge in size] * 2
        regions = [None if grid.region is None else _times(grid.region, far) for grid in image]
        return tuple(dataclasses.replace(grid, region=region) for grid, region in zip(image, regions, strict=True))

    def vision_order(
        self, config: Any, sizes: Tensor | None, projected: Tensor, given: Tensor, grids: Sequence[Grid]
    ) -> Tensor | None:
        if len(projected) != len(given) or sum(grid.length for grid in grids) != len(given):
            return None
        whole = torch.tensor([grid.region == WHOLE for grid in grids for _ in range(grid.length)])
        return torch.argsort(torch.argsort((~whole).to(torch.uint8), stable=True)).to(given.device)


def _times(region: tuple[float, ...], far: Sequence[float]) -> Any:
    return tuple(edge * factor for edge, factor in zip(region, far, strict=True))


def _grids(runs: Sequence[Run]) -> tuple[Grid, ...]:
    """Grids of one image, from its runs: tiles row by row, then the whole."""
    parts = [dataclasses.replace(Grid.square(run.length), region=None) for run in runs[:-1]]
    ends = [left.start + left.length for left in runs[:-1]]
    gaps = [run.start - end for end, run in zip(ends, runs[1:-1], strict=False)]
    rows = 1 + sum(gap > BESIDE for gap in gaps)
    columns = len(parts) // rows
    broken = [number for number, gap in enumerate(gaps, 1) if gap > BESIDE]
    if columns and broken == [row * columns for row in range(1, rows)] and rows * columns == len(parts):
        parts = [dataclasses.replace(part, region=one) for part, one in zip(parts, tiles(rows, columns), strict=True)]
    return (*parts, Grid.square(runs[-1].length))


STEP3P7 = Step3p7("step3p7", "Step-3.7", "stepfun-ai/Step-3.7-Flash")
