"""LLaVA-NeXT (1.6): the whole image small, then large without its padding, a newline token behind each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.families.base import Family
from foveate.families.grids import Grid, Run


@dataclass(frozen=True)
class LlavaNext(Family):
    """Differs from the default in its grids: two an image, the second as large as the image's own shape asks for.

    `generate()` of current transformers hands the base model no image sizes, only encoded images: there the newline
    tokens, all alike and the last of them at the end of the image, show how long a row is.
    """

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        side = config.vision_config.image_size // config.vision_config.patch_size
        small = Grid(side, side)
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if encoded is not None:
            features = encoded.pooler_output
            ends = torch.cat([(image == image[-1]).all(-1) for image in features]).cpu()
            return [_from_row_ends(small, image) for image in ends.split([len(image) for image in features])]
        sizes = kwargs.get("image_sizes")
        return None if sizes is None else [(small, _large(config, size, side)) for size in sizes.tolist()]


def _large(config: Any, size: list[int], side: int) -> Grid:
    """The large grid of an image of this (height, width) in pixels."""
    # what the model itself calls; loaded here, because transformers' models are no part of `import foveate`
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    high, wide = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
    padded = torch.empty(1, high * side, wide * side, device="meta")
    height, width = unpad_image(padded, size).shape[1:]
    return Grid(height, width, row_ends=1)


def _from_row_ends(small: Grid, ends: Tensor) -> tuple[Grid, ...]:
    """Grids of an image from (n,) bool, which of its tokens are like its last."""
    ends = ends[small.length :]
    width = int(ends.long().argmax()) if len(ends) else 0
    height, rest = divmod(len(ends), width + 1)
    expected = torch.arange(len(ends)) % (width + 1) == width
    if not width or rest or not torch.equal(ends, expected):
        return (Grid(1, small.length + len(ends), known=False),)
    return small, Grid(height, width, row_ends=1)


LLAVA_NEXT = LlavaNext("llava_next", "LLaVA-NeXT (1.6)", "llava-hf/llava-v1.6-mistral-7b-hf")
