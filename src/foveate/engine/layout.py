"""Where each visual token of a prompt lies: its image, its grid, its row and column."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.families import Grid, Run

Image = tuple[Grid, ...]


@dataclass(frozen=True)
class Layout:
    """Places of the visual tokens of a prompt.

    Attributes
    ----------
    places
        (4, B, L) long: the image of its sample that a token belongs to, the grid of its sample, row and column in that
        grid; -1 for text, and but for the image for separators.
    grids
        Grids of each sample, of all its images in order.
    known
        Whether all of them are.
    images
        Grids of each image, in prompt order, once each: beams repeat the rows but not the images.
    videos
        Of each of them, whether it is a video.
    repeats
        Rows of the batch that show the same images, one after another.
    visual
        (B, L) bool, on the CPU: all visual tokens.
    """

    places: Tensor
    grids: tuple[tuple[Grid, ...], ...]
    known: bool
    images: tuple[Image, ...]
    videos: tuple[bool, ...]
    repeats: int
    visual: Tensor


def lay_out(
    visual: Tensor, runs: Sequence[Run], images: Sequence[Image] | None, video_token: int | None = None
) -> Layout:
    """Give each visual token its place.

    Parameters
    ----------
    visual
        (B, L) bool, on the CPU.
    runs
        Its unbroken runs of one placeholder.
    images
        Grids of each image in prompt order over the batch. None, or grids that do not add up: each run is an image of
        unknown layout.
    video_token
        Id of the placeholder of videos.
    """
    counts = visual.sum(-1).tolist()
    repeats, once = (1, None) if images is None else _rows(counts, images)
    if once is None:
        repeats, once = 1, [[] for _ in counts]
        for run in runs:
            once[run.sample].append((Grid(1, run.length, known=False),))
    rows = [row for row in once for _ in range(repeats)]
    places = torch.full((4, *visual.shape), -1)
    for sample, row in enumerate(rows):
        if row:
            places[:, sample, visual[sample]] = _places(row)
    grids = tuple(tuple(grid for image in row for grid in image) for row in rows)
    videos = [video for sample, row in enumerate(once) for video in _videos(row, runs, sample * repeats, video_token)]
    return Layout(
        places=places,
        grids=grids,
        known=all(grid.known for row in grids for grid in row),
        images=tuple(image for row in once for image in row),
        videos=tuple(videos),
        repeats=repeats,
        visual=visual,
    )


def _videos(images: Sequence[Image], runs: Sequence[Run], sample: int, video_token: int | None) -> list[bool]:
    """Whether each image of a sample is a video: of the placeholder that its first token has."""
    own = [run for run in runs if run.sample == sample]
    ends = list(itertools.accumulate(run.length for run in own))
    starts = [0, *itertools.accumulate(sum(grid.length for grid in image) for image in images)][:-1]
    return [video_token is not None and own[bisect.bisect(ends, start)].token == video_token for start in starts]


def _rows(counts: list[int], images: Sequence[Image]) -> tuple[int, list[list[Image]] | None]:
    """How often rows are repeated, and the images of each row before that; None if the images do not fill the rows."""
    lengths = [sum(grid.length for grid in image) for image in images]
    if not sum(lengths):
        return 1, None
    repeats, rest = divmod(sum(counts), sum(lengths))
    if rest or not repeats or len(counts) % repeats:
        return 1, None
    rows: list[list[Image]] = []
    at = 0
    for count in counts[::repeats]:
        first = at
        while count > 0 and at < len(images):
            count -= lengths[at]
            at += 1
        if count:
            return 1, None
        rows.append(list(images[first:at]))
    return repeats, rows


def _places(images: Sequence[Image]) -> Tensor:
    """(4, n) places of one sample's visual tokens."""
    found, number = [], 0
    for index, image in enumerate(images):
        for grid in image:
            row = torch.arange(grid.height)[:, None].expand(-1, grid.width + grid.row_ends)
            column = torch.arange(grid.width + grid.row_ends).expand(grid.height, -1)
            place = torch.stack([torch.full_like(row, number), row, column])
            place = place.masked_fill(column >= grid.width, -1).flatten(1)
            place = torch.nn.functional.pad(place, (0, grid.behind), value=-1)
            found.append(torch.nn.functional.pad(place, (0, 0, 1, 0), value=index))
            number += 1
    return torch.cat(found, -1)
