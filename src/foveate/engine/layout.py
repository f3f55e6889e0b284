"""Where each visual token of a prompt lies: its image, its grid, its row and column."""

from __future__ import annotations

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
    """

    places: Tensor
    grids: tuple[tuple[Grid, ...], ...]
    known: bool


def lay_out(visual: Tensor, runs: Sequence[Run], images: Sequence[Image] | None) -> Layout:
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
    """
    counts = visual.sum(-1).tolist()
    rows = None if images is None else _rows(counts, images)
    if rows is None:
        rows = [[] for _ in counts]
        for run in runs:
            rows[run.sample].append((Grid(1, run.length, known=False),))
    places = torch.full((4, *visual.shape), -1)
    for sample, row in enumerate(rows):
        if row:
            places[:, sample, visual[sample]] = _places(row)
    grids = tuple(tuple(grid for image in row for grid in image) for row in rows)
    return Layout(places, grids, all(grid.known for row in grids for grid in row))


def _rows(counts: list[int], images: Sequence[Image]) -> list[list[Image]] | None:
    """Images of each sample; beams repeat the rows but not the images. None if the images do not fill the rows."""
    lengths = [sum(grid.length for grid in image) for image in images]
    if not sum(lengths):
        return None
    repeats, rest = divmod(sum(counts), sum(lengths))
    if rest or len(counts) % repeats:
        return None
    rows: list[list[Image]] = []
    at = 0
    for count in counts[::repeats]:
        first = at
        while count > 0 and at < len(images):
            count -= lengths[at]
            at += 1
        if count:
            return None
        rows += [list(images[first:at])] * repeats
    return rows


def _places(images: Sequence[Image]) -> Tensor:
    """(4, n) places of one sample's visual tokens."""
    found, number = [], 0
    for index, image in enumerate(images):
        for grid in image:
            row = torch.arange(grid.height)[:, None].expand(-1, grid.width + grid.row_ends)
            column = torch.arange(grid.width + grid.row_ends).expand(grid.height, -1)
            place = torch.stack([torch.full_like(row, number), row, column])
            place = place.masked_fill(column >= grid.width, -1).flatten(1)
            place = torch.nn.functional.pad(place, (0, grid.after), value=-1)
            found.append(torch.nn.functional.pad(place, (0, 0, 1, 0), value=index))
            number += 1
    return torch.cat(found, -1)
