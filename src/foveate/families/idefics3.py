"""Idefics3: an image is cut into crops of one size, the whole behind them, each under a heading of text tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.families.base import Family
from foveate.families.grids import Grid, Run


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
        images: list[tuple[Grid, ...]] = [()]
        for run in runs:
            if run.length != side * side:
                return None
            images[-1] += (Grid(side, side),)
            if run.before == whole[run.sample]:
                images.append(())
        return images[:-1]


IDEFICS3 = Idefics3("idefics3", "Idefics3", "HuggingFaceM4/Idefics3-8B-Llama3")
