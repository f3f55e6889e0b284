"""Where a visual token lies in its image: the grid of an image's tokens and their positions in the prompt."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from foveate.errors import FoveateError


class NoGridError(FoveateError):
    """The visual tokens of this model do not lie on one grid an image, or foveate does not know which."""


@dataclass(frozen=True)
class ImageGrid:
    """The visual tokens of one image.

    Parameters
    ----------
    height, width : int
        Rows and columns of tokens.
    positions : torch.Tensor of int, shape (height * width,)
        Their positions in the dense prompt, left padding counted, row by row.
    """

    height: int
    width: int
    positions: torch.Tensor

    def mask(self, kept: torch.Tensor) -> torch.Tensor:
        """Return which cells are kept, ``(height, width) bool``, from kept positions in the dense prompt."""
        return torch.isin(self.positions.cpu(), kept.cpu()).view(self.height, self.width)


def visual_positions(config: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the positions of the image tokens in one prompt, ``(length,)`` ids in, ascending positions out."""
    token = getattr(config, "image_token_id", None)
    if token is None:
        raise NoGridError(f"the configuration of {config.model_type} names no image token")
    return (input_ids == token).nonzero().flatten()


def image_grids(config: Any, inputs: Mapping[str, torch.Tensor], sample: int = 0) -> list[ImageGrid]:
    """Return the grid of each image in a sample of a processed batch.

    Parameters
    ----------
    config : transformers.PretrainedConfig
        The model's configuration.
    inputs : mapping
        What the processor returned: ``input_ids (B, L)`` and, by family, ``image_grid_thw`` or ``pixel_values``.
    sample : int
        Which row of the batch.

    Raises
    ------
    NoGridError
        The tokens cannot be laid out on a grid; the message says why.
    """
    counts = [visual_positions(config, row).numel() for row in inputs["input_ids"]]
    positions = visual_positions(config, inputs["input_ids"][sample])
    if "image_grid_thw" in inputs:
        shapes = _dynamic_shapes(config, inputs["image_grid_thw"], counts, sample)
    else:
        shapes = _fixed_shapes(config, inputs, counts, sample)
    if sum(height * width for height, width in shapes) != positions.numel():
        raise NoGridError(f"the prompt has {positions.numel()} visual tokens, which no grid of {shapes} explains")
    pieces = positions.split([height * width for height, width in shapes])
    return [ImageGrid(height, width, piece) for (height, width), piece in zip(shapes, pieces, strict=True)]


def _dynamic_shapes(config: Any, grid_thw: torch.Tensor, counts: list[int], sample: int) -> list[tuple[int, int]]:
    """Grids of a model that takes images of any size: one row of patches (t, h, w) an image, all samples in order."""
    merge = config.vision_config.spatial_merge_size
    shapes = [(t * h // merge, w // merge) for t, h, w in grid_thw.tolist()]
    start, end = sum(counts[:sample]), sum(counts[: sample + 1])
    found, at = [], 0
    for height, width in shapes:
        if start <= at < end:
            found.append((height, width))
        at += height * width
    return found


def _fixed_shapes(
    config: Any, inputs: Mapping[str, torch.Tensor], counts: list[int], sample: int
) -> list[tuple[int, int]]:
    """Grids of a model that resizes every image to one size and cuts it into no tiles."""
    pixels = inputs.get("pixel_values")
    if pixels is None or pixels.ndim != 4 or sum(counts) % pixels.shape[0]:
        raise NoGridError(f"{config.model_type} lays an image's tokens out in a way foveate cannot draw yet")
    side = math.isqrt(sum(counts) // pixels.shape[0])
    if side == 0 or side * side * pixels.shape[0] != sum(counts) or counts[sample] % (side * side):
        raise NoGridError(
            f"{config.model_type} has {sum(counts) // pixels.shape[0]} visual tokens an image: no square"
        )
    return [(side, side)] * (counts[sample] // (side * side))
