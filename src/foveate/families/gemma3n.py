"""Gemma 3n: squares of tokens from a convolutional encoder, around layers that hand on several states for each token.

Its layers take an input of their own for each token, too, and the last of them read keys and values of layers before,
so that stages must lie before those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from foveate.errors import UnsupportedModelError
from foveate.families.base import Family
from foveate.families.vision import VisionParts


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
