"""LightOnOCR: Mistral Small 3's vision side, without the tokens between the rows of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.families.grids import Grid, Run
from foveate.families.mistral3 import Mistral3
from foveate.families.turns import where_grids_lie
from foveate.families.vision import VisionParts, find_vision_parts, kept_sizes


@dataclass(frozen=True)
class LightOnOCR(Mistral3):
    """Differs in the name of its projector, and in its grids: nothing stands between the rows that would show them.

    `generate()` of current transformers takes the sizes of the images away from the base model; they are those that
    the encoder was given.
    """

    wants_sizes: ClassVar[bool] = True

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        sizes = kept_sizes(encoded)
        if encoded is None or sizes is None:
            return super().image_grids(config, kwargs, runs)
        side = config.vision_config.patch_size * config.spatial_merge_size
        grids = [Grid(high // side, wide // side) for high, wide in sizes.tolist()]
        found = where_grids_lie(runs, grids, encoded.pooler_output)
        return None if found is None else [(grid,) for *_, grid in found]

    def vision_parts(self, model: Any) -> VisionParts:
        return find_vision_parts(model, ("vision_projection",))


LIGHTON_OCR = LightOnOCR("lighton_ocr", "LightOnOCR", "lightonai/LightOnOCR-1B-1025")
