"""Gemma 3, 3n, 4 and PaliGemma."""

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
from foveate.families.vision_encoder import VisionParts

GEMMA3 = Family("gemma3", "Gemma 3", "google/gemma-3-4b-it")


@dataclass(frozen=True)
class Gemma3n(Family):
    """Differs from the default in the inputs of its layers, and in an encoder that is no transformer."""

    token_inputs: ClassVar[Mapping[str, int]] = MappingProxyType({"per_layer_input": -2})
    has_streams: ClassVar[bool] = True

    def shown_states(self, hidden: Tensor) -> Tensor:
        """The first of the states (altup_num_inputs, B, n, D): the one that starts as the token's embedding."""
        return hidden[0]

    def vision_parts(self, model: Any) -> VisionParts:
        raise UnsupportedModelError(
            f"the vision encoder of {type(model).__name__} is a convolutional network: it has no blocks with one "
            "feature for each patch"
        )


GEMMA3N = Gemma3n("gemma3n", "Gemma 3n", "google/gemma-3n-E4B-it")


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


@dataclass(frozen=True)
class PaliGemma(Family):
    """The default finds all of it; what sees what is in the mask that the model makes from `token_type_ids`.

    Without these it makes none for a batch without padding, and its attention then sees everything, but with padding
    a causal one: no rule that a pruned run could keep.
    """

    answer_type: ClassVar[int] = 1  # 0 is the prompt, which sees all of itself

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        """As the default.

        Raises
        ------
        UnsupportedModelError
            Without `token_type_ids`.
        """
        if kwargs.get("token_type_ids") is None:
            raise UnsupportedModelError(
                "PaliGemma is pruned only with token_type_ids, which its processor gives: without them what a token "
                "sees depends on the padding of the batch"
            )
        return super().image_grids(config, kwargs, runs)


PALIGEMMA = PaliGemma("paligemma", "PaliGemma", "google/paligemma2-3b-mix-224")
