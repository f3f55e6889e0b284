"""LLaVA-NeXT (1.6), Granite Vision 3: an image small, then large without padding, newline tokens after its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.families.base import Family
from foveate.families.grids import Grid, Run
from foveate.families.turns import frames_of, in_turn
from foveate.families.vision_encoder import same_features


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
            return [from_row_ends(small, image) for image in ends.split([len(image) for image in features])]
        sizes = kwargs.get("image_sizes")
        return None if sizes is None else [(small, large_grid(config, size, side)) for size in sizes.tolist()]

    def vision_order(
        self, config: Any, sizes: Tensor | None, projected: Tensor, given: Tensor, grids: Sequence[Grid]
    ) -> Tensor | None:
        images = list(zip(grids[::2], grids[1::2], strict=False))
        if len(grids) % 2 or not all(grid.known for grid in grids) or sum(grid.length for grid in grids) != len(given):
            return None
        pixels = config.vision_config.image_size
        orders = unpack(images, pixels // config.vision_config.patch_size, rasters(config), projected, given, 0)
        return None if orders is None else torch.cat(orders)


def rasters(config: Any) -> list[tuple[int, int]]:
    """Rows and columns of tiles that an image may be cut into."""
    pixels = config.vision_config.image_size
    return [(high // pixels, wide // pixels) for high, wide in config.image_grid_pinpoints]


def unpack(
    images: Sequence[tuple[Grid, ...]],
    side: int,
    options: Sequence[tuple[int, int]],
    projected: Tensor,
    given: Tensor,
    first: int,
) -> list[Tensor] | None:
    """Which token of the encoder each token of the images is, from tile `first` on; None if they do not fit.

    An image with half of its tiles' rows cut away may be as large as one of half as many tiles, whole. Only the
    features tell them apart.
    """
    if not images:
        return [] if first * side * side == len(projected) else None
    image, rest = images[0], images[1:]
    length = sum(grid.length for grid in image)
    fitting = [(0, 0)] if len(image) == 1 else [raster for raster in options if fits(raster, side, image[1])]
    for high, wide in fitting:
        order = _order(high, wide, side, image, first).to(given.device)
        last = first + 1 + high * wide
        if last * side * side > len(projected):
            continue
        if len(fitting) > 1 and not same_features(projected, given[:length], order):
            continue
        orders = unpack(rest, side, options, projected, given[length:], last)
        if orders is not None:
            return [order, *orders]
    return None


def fits(raster: tuple[int, int], side: int, large: Grid) -> bool:
    """Whether so many rows and columns of tiles, their padding cut off at two ends, make this grid."""
    down, across = raster[0] * side - large.height, raster[1] * side - large.width
    return min(down, across) == 0 and max(down, across) % 2 == 0


def _order(high: int, wide: int, side: int, image: tuple[Grid, ...], first: int) -> Tensor:
    """(N,) tokens of one image: its first tile, then the others as one grid without its padding; -1: separators."""
    whole = torch.nn.functional.pad(torch.arange(side * side), (0, image[0].after), value=-1)
    if len(image) == 1:
        return torch.where(whole < 0, whole, whole + first * side * side)
    large = image[1]
    tiles = torch.arange(high * wide * side * side).view(high, wide, side, side).transpose(1, 2)
    tiles = tiles.reshape(high * side, wide * side) + side * side
    top, left = (high * side - large.height) // 2, (wide * side - large.width) // 2
    tiles = tiles[top : top + large.height, left : left + large.width]
    packed = torch.nn.functional.pad(tiles, (0, 1), value=-1).flatten()
    order = torch.cat([whole, packed])
    return torch.where(order < 0, order, order + first * side * side)


def large_grid(config: Any, size: list[int], side: int) -> Grid:
    """The large grid of an image of this (height, width) in pixels."""
    # what the model itself calls; loaded here, because transformers' models are no part of `import foveate`
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    high, wide = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
    padded = torch.empty(1, high * side, wide * side, device="meta")
    height, width = unpad_image(padded, size).shape[1:]
    return Grid(height, width, row_ends=1)


def from_row_ends(small: Grid, ends: Tensor) -> tuple[Grid, ...]:
    """Grids of an image from (n,) bool, which of its tokens are like its last."""
    ends = ends[small.length :]
    width = int(ends.long().argmax()) if len(ends) else 0
    height, rest = divmod(len(ends), width + 1)
    expected = torch.arange(len(ends)) % (width + 1) == width
    if not width or rest or not torch.equal(ends, expected):
        return (Grid(1, small.length + len(ends), known=False),)
    return small, Grid(height, width, row_ends=1)


LLAVA_NEXT = LlavaNext("llava_next", "LLaVA-NeXT (1.6), Granite Vision 3", "llava-hf/llava-v1.6-mistral-7b-hf")


@dataclass(frozen=True)
class LlavaNextVideo(LlavaNext):
    """Differs from LLaVA-NeXT in its videos: frame after frame in one run, without newlines."""

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        side = config.vision_config.image_size // config.vision_config.patch_size // config.spatial_pool_stride
        number, frames = frames_of(kwargs, side**2)
        images = super().image_grids(config, kwargs, runs) or []
        return in_turn(runs, images, [(Grid(side, side),) * frames] * number, config.video_token_id)

    def vision_order(
        self, config: Any, sizes: Tensor | None, projected: Tensor, given: Tensor, grids: Sequence[Grid]
    ) -> Tensor | None:
        """As in LLaVA-NeXT; videos are encoded after the images, and come out in order."""
        large = [number for number, grid in enumerate(grids) if grid.row_ends]
        images = [grid for number in large for grid in grids[number - 1 : number + 1]]
        length = sum(grid.length for grid in images)
        frames = sum(grid.length for grid in grids) - length
        encoded = len(projected) - frames
        if encoded < 0 or len(given) != length + frames:
            return None
        videos = torch.arange(encoded, len(projected), device=given.device)
        if not images:
            return videos if not encoded else None
        order = super().vision_order(config, sizes, projected[:encoded], given[:length], images)
        return None if order is None else torch.cat([order, videos])


LLAVA_NEXT_VIDEO = LlavaNextVideo("llava_next_video", "LLaVA-NeXT-Video", "llava-hf/LLaVA-NeXT-Video-7B-hf")
