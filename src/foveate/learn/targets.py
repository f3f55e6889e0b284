"""Which visual tokens lie under the boxes: the target that a predictor learns to point at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.families import Grid
from foveate.learn.errors import TrainingDataError
from foveate.learn.grounded import Box


def target_mask(boxes: Sequence[Box], image: Sequence[Grid]) -> Tensor:
    """Which visual tokens of an image a box touches: the published rule, on each of its grids.

    A box (x1, y1, x2, y2) in shares of the image takes the rows from ⌊y1·H⌋ to ⌊y2·H⌋, at most the last, and the
    columns likewise.

    Parameters
    ----------
    boxes
        Of this image.
    image
        Its grids, in prompt order.

    Returns
    -------
    Tensor
        (n,) bool, the image's tokens in prompt order; separators are False.

    Raises
    ------
    TrainingDataError
        There are boxes, but it is unknown how the tokens lie in the image.
    """
    if boxes and not all(grid.known for grid in image):
        raise TrainingDataError("boxes cannot be placed: how the visual tokens lie in the image is unknown")
    return torch.cat([torch.zeros(0, dtype=torch.bool), *(_on_grid(boxes, grid) for grid in image)])


def target_masks(boxes: Sequence[Sequence[Sequence[Box]]], grids: Sequence[Sequence[Sequence[Grid] | Grid]]) -> Tensor:
    """`target_mask` of a batch, in the shape of the engine's `VisualTokens`.

    Parameters
    ----------
    boxes
        For each sample, for each of its images, the boxes.
    grids
        For each sample, for each of its images, the grids. Where a sample has one image, also its grids themselves, as
        in `VisualTokens.grids`.

    Returns
    -------
    Tensor
        (B, N) bool, N the most visual tokens of a sample; short rows end in False.

    Raises
    ------
    TrainingDataError
        There are boxes for more or fewer images than a sample has, or they cannot be placed.
    """
    rows = []
    for number, (own, given) in enumerate(zip(boxes, grids, strict=True)):
        flat = [grid for grid in given if isinstance(grid, Grid)]
        images = [flat] if flat else [image for image in given if not isinstance(image, Grid)]
        if len(own) != len(images):
            raise TrainingDataError(f"sample {number} has {len(images)} images, and boxes for {len(own)}")
        masks = [target_mask(one, image) for one, image in zip(own, images, strict=True)]
        rows.append(torch.cat([torch.zeros(0, dtype=torch.bool), *masks]))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _on_grid(boxes: Sequence[Box], grid: Grid) -> Tensor:
    """(grid.length,) bool, the tokens of a grid that some box touches."""
    touched = torch.zeros(grid.height, grid.width + grid.row_ends, dtype=torch.bool)
    for x1, y1, x2, y2 in boxes:
        rows, columns = _cells(y1, y2, grid.height), _cells(x1, x2, grid.width)
        touched[rows, columns] = True
    return torch.nn.functional.pad(touched.flatten(), (0, grid.behind))


def _cells(start: float, end: float, count: int) -> slice:
    """The cells of `count` in a row that the stretch from `start` to `end`, shares of the row, touches."""
    return slice(math.floor(start * count), min(math.floor(end * count), count - 1) + 1)
