"""Idefics3: an image is cut into crops of one size, the whole after them, each under a heading of text tokens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.families.base import Family
from foveate.families.grids import WHOLE, Grid, Region, Run, tiles

# tokens between two crops of a row, their heading, and a line break more between two rows
IN_ROW, NEW_ROW = 2, 3


@dataclass(frozen=True)
class Idefics3(Family):
    """Differs from the default in its grids: each crop is a run of tokens of its own, with its row and column before.

    The token before the whole image is the same for every image, and whatever the crops are, the whole image is the
    last of them. A sample's last run is therefore the whole of its last image, and each run with the same token before
    it ends an image. Frames of a video look like images and count as such.
    """

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size // config.scale_factor
        whole = {run.sample: run.before for run in runs}  # the last of each sample stays
        images: list[list[Run]] = [[]]
        for run in runs:
            if run.length != side * side:
                return None
            images[-1].append(run)
            if run.before == whole[run.sample]:
                images.append([])
        return [tuple(Grid(side, side, region=region) for region in _regions(image)) for image in images[:-1]]


def _regions(runs: Sequence[Run]) -> Sequence[Region | None]:
    """What each run of an image covers, the whole last."""
    *crops, whole = runs
    if whole.before is None:  # the prompt was given as embeddings: this may be a crop as well as the whole
        return [None] * len(runs)
    gaps = [after.start - run.start - run.length for run, after in itertools.pairwise(runs)]
    rows = gaps[:-1].count(NEW_ROW) + 1
    columns = len(crops) // rows
    raster = [NEW_ROW if number % columns == 0 else IN_ROW for number in range(1, len(crops))]
    # before the whole there are always line breaks; if not, the tokenizer drops them, and rows cannot be told
    known = gaps[:-1] == raster and gaps[-1:] > [IN_ROW]
    return [*(tiles(rows, columns) if known else [None] * len(crops)), WHOLE]


IDEFICS3 = Idefics3("idefics3", "Idefics3", "HuggingFaceM4/Idefics3-8B-Llama3")


SMOLVLM = Idefics3("smolvlm", "SmolVLM2", "HuggingFaceTB/SmolVLM2-2.2B-Instruct")
