"""Apertus 1.5: an image is codes of the vocabulary, one for each square of pixels, a text token between its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.errors import UnsupportedModelError
from foveate.families.base import Family
from foveate.families.grids import Grid, Run
from foveate.families.pixtral import pixtral_grids
from foveate.families.vision_encoder import VisionParts


@dataclass(frozen=True)
class Apertus1p5(Family):
    """Differs from the default in its grids, and in having no vision encoder but a tokenizer of images."""

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        return pixtral_grids(kwargs, runs, config.vision_config.spatial_scale_factor)

    def vision_parts(self, model: Any) -> VisionParts:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no vision encoder whose features could be read: its images are codes"
        )


APERTUS1P5 = Apertus1p5("apertus1p5", "Apertus 1.5", "swiss-ai/Apertus-v1.5-8B")
