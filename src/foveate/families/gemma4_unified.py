"""Gemma 4 12B: its visual tokens are patches of pixels themselves, through one linear map and no encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.errors import UnsupportedModelError
from foveate.families.gemma4 import Gemma4
from foveate.families.vision import VisionParts


@dataclass(frozen=True)
class Gemma4Unified(Gemma4):
    """Differs from Gemma 4 in that each patch is a token."""

    def patches_a_side(self, config: Any) -> int:
        return 1

    def vision_parts(self, model: Any) -> VisionParts:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no vision encoder: its visual tokens are patches of pixels, through one "
            "linear map"
        )


GEMMA4_UNIFIED = Gemma4Unified("gemma4_unified", "Gemma 4 12B", "google/gemma-4-12B-it")
