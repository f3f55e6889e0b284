"""Gemma 4: images of any shape, their patches averaged in squares, around a decoder with windows.

Layers of its smaller models (E2B, E4B) take an input of their own for each token, and the last of them read keys and
values of layers before, so that stages must lie before those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.errors import UnsupportedModelError
from foveate.families.base import Family
from foveate.families.grids import Grid, Run
from foveate.families.vision import VisionParts


@dataclass(frozen=True)
class Gemma4(Family):
    """Differs from the default in its grids, which are only known where the places of the patches are given.

    `generate()` of current transformers takes those away from the base model: then the layout is unknown.
    """

    token_inputs: ClassVar[Mapping[str, int]] = MappingProxyType({"per_layer_input": -2})

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        encoded = kwargs.get("mm_encoder_outputs") or {}
        if encoded.get("video") is not None or kwargs.get("pixel_values_videos") is not None:
            return None
        if encoded.get("image") is not None:
            return [(Grid(1, len(image), known=False),) for image in encoded["image"].pooler_output]
        places = kwargs.get("image_position_ids")
        if not isinstance(places, Tensor):
            return None
        side = self.patches_a_side(config)
        # the last patch is the lower right one; padding is -1
        columns, rows = torch.div(places.amax(1) + 1, side, rounding_mode="floor").unbind(-1)
        return [(Grid(*size),) for size in zip(rows.tolist(), columns.tolist(), strict=True)]

    def patches_a_side(self, config: Any) -> int:
        """How many patches are averaged to one token, along each side of their square."""
        return int(config.vision_config.pooling_kernel_size)

    def vision_parts(self, model: Any) -> VisionParts:
        raise UnsupportedModelError(
            f"what the vision encoder of {type(model).__name__} puts out cannot be lined up with its visual tokens: "
            "it averages patches by places that foveate does not see"
        )


GEMMA4 = Gemma4("gemma4", "Gemma 4", "google/gemma-4-26B-A4B-it")
