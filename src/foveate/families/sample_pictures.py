"""Pictures of a wanted number of visual tokens, straight from a config: for a model without a processor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NEAR = 0.03  # share of the wanted tokens by which fewer pictures may miss them
ASPECT = 2.0  # a picture's longer side over the shorter, at most, where its number of tokens allows
SIDES = (28, 1344, 28)  # pixels that are tried for LLaVA-NeXT, whose numbers of tokens follow no formula


@dataclass(frozen=True)
class SamplePictures:
    """One sample's pictures.

    Parameters
    ----------
    tokens : int
        Visual tokens, separators among them.
    runs : list of int
        Visual tokens of each picture.
    pixels : tuple of int
        Shape of the pixels of all its pictures.
    sizes : list of list of int
        What the model wants to know of each beside the pixels; empty for none.
    sizes_name : str
        The argument of the forward pass that takes them.
    types : bool
        Whether the model also takes `mm_token_type_ids`.
    """

    tokens: int
    runs: list[int]
    pixels: tuple[int, ...]
    sizes: list[list[int]]
    sizes_name: str = ""
    types: bool = False


def _llava(config: Any, wanted: int) -> SamplePictures:
    vision = config.vision_config
    each = (vision.image_size // vision.patch_size) ** 2
    count = max(1, round(wanted / each))
    return SamplePictures(count * each, [each] * count, (count, 3, vision.image_size, vision.image_size), [])


def _qwen(config: Any, wanted: int) -> SamplePictures:
    vision = config.vision_config
    high, wide = _sides(wanted)
    merge, temporal = vision.spatial_merge_size, vision.temporal_patch_size
    patch = 3 * temporal * vision.patch_size**2
    pixels, size = (high * wide * merge**2, patch), [1, high * merge, wide * merge]
    return SamplePictures(high * wide, [high * wide], pixels, [size], "image_grid_thw", types=True)


def _sides(wanted: int) -> tuple[int, int]:
    """Rows and columns of about so many cells: exactly, where a shape that is not too long gives that."""
    square = max(1, math.isqrt(wanted))
    for high in range(square, max(1, math.ceil(math.sqrt(wanted / ASPECT))) - 1, -1):
        if wanted % high == 0:
            return high, wanted // high
    return square, max(1, round(wanted / square))


def _llava_next(config: Any, wanted: int) -> SamplePictures:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    from foveate.families.llava_next import large_grid

    pixels = config.vision_config.image_size
    side = pixels // config.vision_config.patch_size
    lengths: dict[int, list[int]] = {}
    scale = pixels / 336
    for high in range(*SIDES):
        for wide in range(high, SIDES[1], SIDES[2]):  # the squarest shape of a number comes last
            size = [max(1, round(high * scale)), max(1, round(wide * scale))]
            lengths[side * side + large_grid(config, size, side).length] = size
    choices = (
        (max(0.0, abs(count * length - wanted) - NEAR * wanted), count, abs(count * length - wanted), length)
        for count in range(1, wanted // side**2 + 2)
        for length in lengths
    )
    _, count, _, length = min(choices)
    size = lengths[length]
    tiles = image_size_to_num_patches(size, config.image_grid_pinpoints, pixels)
    shape = (count, tiles, 3, pixels, pixels)
    return SamplePictures(count * length, [length] * count, shape, [size] * count, "image_sizes")


MAKERS: dict[str, Callable[[Any, int], SamplePictures]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
}


def sample_pictures(config: Any, wanted: int) -> SamplePictures | None:
    """One sample's pictures with about so many visual tokens; None where only a processor can tell."""
    make = MAKERS.get(config.model_type)
    if make is None or getattr(config.vision_config, "model_type", "") == "pixtral":  # pictures of any size
        return None
    return make(config, wanted)
