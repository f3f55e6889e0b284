"""Which tokens lie under the boxes, and how well the scores of a predictor fit them: its loss, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from foveate.families import Family, Grid
from foveate.families.grids import WHOLE
from foveate.learn.data import Box
from foveate.learn.errors import TrainingDataError
from foveate.pruners import VisualTokens


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
        There are boxes, but it is unknown how the tokens lie in the image, or which part of it a grid covers.
    """
    if boxes and not all(grid.known for grid in image):
        raise TrainingDataError("boxes cannot be placed: how the visual tokens lie in the image is unknown")
    if boxes and any(grid.region is None for grid in image):
        raise TrainingDataError(
            f"boxes cannot be placed: an image was cut into {len(image)} parts, and it is unknown which lies where; "
            "with the image's size, `placed` may know"
        )
    return torch.cat([torch.zeros(0, dtype=torch.bool), *(_on_grid(boxes, grid) for grid in image)])


def placed(
    grids: Sequence[Sequence[Sequence[Grid] | Grid]],
    sizes: Sequence[Sequence[tuple[int, int]]],
    family: Family,
    processor: Any,
) -> list[list[tuple[Grid, ...]]]:
    """The grids of a batch with the part of the image that each covers, as far as sizes and processor tell.

    Parameters
    ----------
    grids
        As for `target_masks`.
    sizes
        For each sample, for each of its images, width and height in pixels before the processor.
    family, processor
        The model's.

    Raises
    ------
    TrainingDataError
        There are sizes for more or fewer images than a sample has.
    """
    return [
        [family.place(image, size, processor) for image, size in zip(images, own, strict=True)]
        for images, own in _by_image(grids, sizes, "sizes")
    ]


def shown_targets(
    boxes: Sequence[Sequence[Box]],
    sizes: Sequence[tuple[int, int]],
    tokens: VisualTokens,
    family: Family,
    processor: Any,
) -> Tensor:
    """(B, N) bool, the visual tokens that a stage is shown of samples of one image, under their boxes.

    Parameters
    ----------
    boxes, sizes
        Of each sample: the boxes, and the image's width and height in pixels; text-only samples have none of both.
    tokens
        As the engine shows them.
    family, processor
        The model's.

    Raises
    ------
    TrainingDataError
        As `target_masks`.
    """
    images = [[size] for size in sizes]
    target = target_masks([[own] for own in boxes], placed(tokens.grids, images, family, processor))
    number = tokens.valid.shape[1]  # without a last visual token that is the prompt's last, too
    target = torch.nn.functional.pad(target, (0, max(number - target.shape[1], 0)))[:, :number]
    return target.to(tokens.valid.device) & tokens.valid


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
    none = torch.zeros(0, dtype=torch.bool)
    rows = [
        torch.cat([none, *(target_mask(one, image) for one, image in zip(own, images, strict=True))])
        for images, own in _by_image(grids, boxes, "boxes")
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _by_image(
    grids: Sequence[Sequence[Sequence[Grid] | Grid]], given: Sequence[Sequence[Any]], what: str
) -> Iterator[tuple[list[tuple[Grid, ...]], Sequence[Any]]]:
    """For each sample, the grids of each of its images, and what is given for each of them."""
    for number, (row, own) in enumerate(zip(grids, given, strict=True)):
        flat = tuple(grid for grid in row if isinstance(grid, Grid))
        images = [flat] if flat else [tuple(image) for image in row if not isinstance(image, Grid)]
        if len(own) != len(images):
            raise TrainingDataError(f"sample {number} has {len(images)} images, and {what} for {len(own)}")
        yield images, own


def _on_grid(boxes: Sequence[Box], grid: Grid) -> Tensor:
    """(grid.length,) bool, the tokens of a grid that some box touches."""
    touched = torch.zeros(grid.height, grid.width + grid.row_ends, dtype=torch.bool)
    left, top, right, bottom = grid.region or WHOLE
    for x1, y1, x2, y2 in boxes:
        rows = _cells((y1 - top) / (bottom - top), (y2 - top) / (bottom - top), grid.height)
        columns = _cells((x1 - left) / (right - left), (x2 - left) / (right - left), grid.width)
        touched[:, : grid.width][rows, columns] = True
    return torch.nn.functional.pad(touched.flatten(), (0, grid.after))


def _cells(start: float, end: float, count: int) -> slice:
    """The cells of `count` in a row that the stretch from `start` to `end`, shares of the row, touches, if any."""
    return slice(max(math.floor(start * count), 0), max(math.floor(end * count) + 1, 0))  # a slice stops at the last


EPSILON = 1e-6


def localisation_loss(
    logits: Tensor, target: Tensor, valid: Tensor, dice: float = 1.0, bce: float = 0.1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of Dice and binary cross-entropy, fp32; of each sample, then averaged over those with a target.

    Dice weighs more, as boxes are coarse: what matters is that no token of the answer is lost, not the box's rim.

    Parameters
    ----------
    logits
        (B, N) keep scores of the visual tokens.
    target
        (B, N) bool, tokens under the boxes. A sample without any takes no part.
    valid
        (B, N) bool, False for padding.
    dice, bce
        Weights; the published ones.

    Returns
    -------
    loss
        Scalar; zero, and still part of the graph, where no sample has a target.
    parts
        "dice" and "bce", scalars without weight and gradient.
    """
    target = target & valid
    counts = target.any(-1)
    scores = logits.float().masked_fill(~valid, 0)
    truth = target.float()
    probable = scores.sigmoid() * valid
    overlap = (probable * truth).sum(-1)
    losses = {
        "dice": 1 - (2 * overlap + EPSILON) / (probable.sum(-1) + truth.sum(-1) + EPSILON),
        "bce": (functional.binary_cross_entropy_with_logits(scores, truth, reduction="none") * valid).sum(-1)
        / valid.sum(-1).clamp(min=1),
    }
    means = {name: (each * counts).sum() / counts.sum().clamp(min=1) for name, each in losses.items()}
    return dice * means["dice"] + bce * means["bce"], {name: mean.detach() for name, mean in means.items()}


def recall(keep: Tensor, target: Tensor) -> Tensor:
    """Share of the target tokens that are kept, a scalar: mean over the samples that have any, NaN where none has.

    Parameters
    ----------
    keep, target
        (B, N) bool.
    """
    wanted = target.sum(-1)
    return ((keep & target).sum(-1) / wanted)[wanted > 0].mean()


def kept_share(keep: Tensor, valid: Tensor) -> Tensor:
    """Share of the visual tokens that are kept, a scalar: mean over the samples that have any, NaN where none has.

    Parameters
    ----------
    keep, valid
        (B, N) bool.
    """
    there = valid.sum(-1)
    return ((keep & valid).sum(-1) / there)[there > 0].mean()
