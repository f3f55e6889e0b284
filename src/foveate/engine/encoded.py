"""How large the images are that were encoded before the forward pass.

`generate()` of current transformers encodes images first and then takes their sizes away from the base model. Where
nothing else tells how many rows of tokens an image has, its size is noted when the encoder is called, and found again
by what the encoder put out: the model hands on that very object, with the features of each image in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from foveate.families import Family

MOST_CALLS = 32  # whoever encodes image after image, and never prefills, must not fill the memory


class EncodedSizes:
    """Sizes of the images in the latest calls of one model's vision encoder, as long as what it put out is there."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.seen: list[tuple[weakref.ref, Tensor]] = []

    def note(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """A forward hook of the vision encoder."""
        sizes = self.family.vision_sizes(args, kwargs)
        if sizes is not None:
            there = [pair for pair in self.seen if pair[0]() is not None]
            self.seen = [*there[1 - MOST_CALLS :], (weakref.ref(output), sizes)]

    def of(self, encoded: Mapping[str, Any] | None) -> dict[str, Tensor]:
        """For "image" and "video", the size of each whose features are in `encoded`; beams repeat them."""
        found = {}
        for kind, output in (encoded or {}).items():
            sizes = next((one for ref, one in self.seen if ref() is output), None)
            order = _numbers(getattr(output, "pooler_output", None))
            if sizes is not None and order and max(order) + 1 == len(sizes):
                found[kind] = sizes[order]
        return found


def _numbers(features: Any) -> list[int]:
    """Which image each of the features is of, in the order in which they were encoded; repeated ones are the same."""
    if not isinstance(features, (list, tuple)):
        return []
    numbers: dict[int, int] = {}
    return [numbers.setdefault(one.data_ptr(), len(numbers)) for one in features]
