"""GOT-OCR 2: tiles with a thumbnail after them as in InternVL, or the pages of a document, in one run of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foveate.families.grids import WHOLE, Grid, Run
from foveate.families.internvl import InternVL


@dataclass(frozen=True)
class GotOcr2(InternVL):
    """Differs from InternVL in what several grids in a run may be: tiles of one image, or pages, nothing tells which.

    A run counts as one image either way. Its vision encoder puts out a map of patches, and the convolutions after it
    make one token of each square of them; what they take from beside the square is left out of the token's features.
    """

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        images = super().image_grids(config, kwargs, runs)
        if images is None:
            return None
        return [
            image if len(image) == 1 else tuple(dataclasses.replace(grid, region=None) for grid in image)
            for image in images
        ]

    def place(self, image: tuple[Grid, ...], size: tuple[int, int], processor: Any) -> tuple[Grid, ...]:
        # a size is that of one image: its grids are tiles
        return super().place((*image[:-1], dataclasses.replace(image[-1], region=WHOLE)), size, processor)

    def merge_patches(self, config: Any, output: Tensor, projected: Tensor) -> Tensor:
        return super().merge_patches(config, output.flatten(1, -2), projected)  # (tiles, rows, columns, C)


GOT_OCR2 = GotOcr2("got_ocr2", "GOT-OCR 2", "stepfun-ai/GOT-OCR-2.0-hf")
