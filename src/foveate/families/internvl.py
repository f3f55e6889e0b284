"""InternVL: an image is cut into tiles of one size, with a thumbnail of the whole behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.families.base import Family
from foveate.families.grids import Grid, Run


@dataclass(frozen=True)
class InternVL(Family):
    """Differs from the default in its grids: a run of tokens is an image, or a video frame, of one or more tiles."""

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        tiles = kwargs.get("pixel_values") if encoded is None else encoded.pooler_output
        if tiles is None or not len(tiles):
            return None
        each, rest = divmod(sum(run.length for run in runs), len(tiles))
        if rest or not each or any(run.length % each for run in runs):
            return None
        return [(Grid.square(each),) * (run.length // each) for run in runs]


INTERNVL = InternVL("internvl", "InternVL3", "OpenGVLab/InternVL3-8B-hf")
