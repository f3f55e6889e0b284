"""Pixtral's vision encoder: images of any size, each row of tokens a run of its own, with a text token behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.families.grids import Grid, Run
from foveate.families.turns import Places, take_turns


def pixtral_grids(kwargs: Mapping[str, Any], runs: Sequence[Run], patch: int) -> list[tuple[Grid, ...]] | None:
    """Grids of each image, one each; None if unknown.

    `generate()` of current transformers hands the base model no image sizes, only encoded images: there the tokens
    between the rows tell how long these are.

    Parameters
    ----------
    kwargs
        Arguments of the base model's forward.
    runs
        Unbroken runs of visual tokens in prompt order.
    patch
        Pixels along the side of a visual token.
    """
    encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
    if encoded is not None:
        pieces = take_turns(runs, [[len(image) for image in encoded.pooler_output], []], -1)
        return None if pieces is None else [(_from_rows(places),) for _, _, places in pieces]
    sizes = kwargs.get("image_sizes")
    if sizes is None:
        return None
    return [(Grid(high // patch, wide // patch),) for high, wide in torch.as_tensor(sizes).tolist()]


def pixtral_sizes(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """(images, 2) height and width in pixels of the images in a call of the encoder."""
    sizes = kwargs.get("image_sizes", args[1] if len(args) > 1 else None)
    if sizes is not None:
        return torch.as_tensor(sizes)
    pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
    return torch.tensor([pixels.shape[-2:]] * len(pixels))


def merge_packed(output: Tensor, sizes: Tensor, patch: int, merge: int) -> Tensor:
    """(M, C), the mean of each square of `merge` x `merge` patches.

    Parameters
    ----------
    output
        (1, patches, C), those of each image in raster order, one image behind the other.
    sizes
        (images, 2) in pixels.
    patch
        Pixels along the side of a patch.
    """
    grids = [(high // patch, wide // patch) for high, wide in sizes.tolist()]
    images = output[0].split([high * wide for high, wide in grids])
    means = []
    for image, (high, wide) in zip(images, grids, strict=True):
        # what is left over at the right and at the bottom makes no token
        squares = image.view(high, wide, -1)[: high // merge * merge, : wide // merge * merge]
        means.append(squares.unflatten(1, (-1, merge)).unflatten(0, (-1, merge)).mean((1, 3)).flatten(0, 1))
    return torch.cat(means)


def _from_rows(places: Places) -> Grid:
    """The grid of an image whose rows lie at these (sample, start, length) places."""
    sample, start, width = places[0]
    expected = [(sample, start + row * (width + 1), width) for row in range(len(places))]
    if len(places) == 1 or places != expected:  # one row, or a prompt without tokens between the rows
        return Grid(1, sum(length for _, _, length in places), known=False)
    return Grid(len(places), width)
