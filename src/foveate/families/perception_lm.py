"""PerceptionLM: an image is shown small, then in tiles of the same size; the patches of each averaged in squares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.families.base import Family
from foveate.families.grids import Grid, Run
from foveate.families.turns import in_turn


@dataclass(frozen=True)
class PerceptionLM(Family):
    """Differs from the default in its grids and in where its config says how wide the vision encoder is.

    All images of a call have as many tiles, the whole image first. `generate()` of current transformers hands the base
    model the tiles of all images in one row: there each run of tokens counts as one image, and so do two images that
    no token parts. How many tiles stand side by side is not in the prompt.
    """

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        token, total = config.video_token_id, sum(run.length for run in runs)
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        found = [kwargs.get(name) for name in ("pixel_values", "pixel_values_videos")]
        (images, parts), (videos, frames) = ((0, 0) if one is None else one.shape[:2] for one in found)
        tiles = images * parts if encoded is None else len(encoded.pooler_output)
        each, rest = divmod(total, tiles + videos * frames or total + 1)
        if rest or not each or any(run.length % each for run in runs):
            return None
        if encoded is None:
            shown = [_grids(each, parts, False)] * images
        else:
            shown = [_grids(each, run.length // each, False) for run in runs if run.token != token]
        return in_turn(runs, shown, [_grids(each, frames, True)] * videos, token)

    def vision_width(self, config: Any) -> int:
        return int(config.vision_config.model_args["embed_dim"])


def _grids(each: int, number: int, video: bool) -> tuple[Grid, ...]:
    """So many squares of `each` tokens: the whole image and its tiles, or frames."""
    whole = Grid.square(each)
    return (whole,) + (whole if video else dataclasses.replace(whole, region=None),) * (number - 1)


PERCEPTION_LM = PerceptionLM("perception_lm", "PerceptionLM", "facebook/Perception-LM-1B")
