"""Grids: how the visual tokens of an image lie in it, and the runs of visual tokens that a prompt has."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Region = tuple[float, float, float, float]
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Grid:
    """Visual tokens that follow one another in the prompt, row by row; an image is one of these or several.

    Attributes
    ----------
    height, width
        Rows and columns of tokens.
    row_ends
        Separator tokens after each row: visual tokens that lie on no grid (LLaVA-NeXT's newline).
    after
        Separator tokens after the whole grid.
    known
        False where only the number of tokens is known: they then stand in one row.
    region
        (x1, y1, x2, y2), the share of the image that the grid covers, as far as the prompt tells; below 0 or above 1
        where it covers padding too. None: a part of the image, but not known which; `Family.place` may know.
    """

    height: int
    width: int
    row_ends: int = 0
    after: int = 0
    known: bool = True
    region: Region | None = WHOLE

    @property
    def cells(self) -> int:
        """Tokens that have a row and a column."""
        return self.height * self.width

    @property
    def length(self) -> int:
        """All tokens, separators too."""
        return self.height * (self.width + self.row_ends) + self.after

    @classmethod
    def square(cls, length: int) -> Grid:
        """As many tokens as fill a square; of unknown layout where they fill none."""
        side = math.isqrt(length)
        return cls(side, side) if side * side == length else cls(1, length, known=False)


def tiles(rows: int, columns: int) -> list[Region]:
    """The regions of an image cut into equal tiles, row by row."""
    return [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def padded_to_square(size: tuple[int, int]) -> Region:
    """The region of an image of this width and height that a square shows, in the middle of which it lies."""
    x, y = ((max(size) - edge) / 2 / edge for edge in size)
    return -x, -y, 1 + x, 1 + y


@dataclass(frozen=True)
class Run:
    """An unbroken run of one placeholder token in a prompt.

    Attributes
    ----------
    sample
        Row of the batch.
    start, length
        Its first position, left padding counted, and its tokens.
    token
        Id of the placeholder; None where the prompt was given as embeddings.
    before
        Id of the token in front of it; None there too, and at the very beginning.
    """

    sample: int
    start: int
    length: int
    token: int | None = None
    before: int | None = None


def find_runs(visual: Tensor, ids: Tensor | None) -> list[Run]:
    """The runs of visual tokens in prompt order over the batch.

    Parameters
    ----------
    visual
        (B, L) bool, visual tokens, on the CPU.
    ids
        (B, L) long, on the CPU; None where the prompt was given as embeddings.
    """
    start = visual.clone()
    same = visual[:, :-1] if ids is None else visual[:, :-1] & (ids[:, 1:] == ids[:, :-1])
    start[:, 1:] &= ~same
    samples, columns = start.nonzero().unbind(-1)
    lengths = torch.bincount(start.flatten().cumsum(0)[visual.flatten()] - 1, minlength=len(samples))
    words: list[list[int | None]] = [[None] * len(samples)] * 2
    if ids is not None:
        before = torch.where(columns > 0, ids[samples, columns - 1], -1).tolist()
        words = [ids[samples, columns].tolist(), [word if word >= 0 else None for word in before]]
    return [Run(*run) for run in zip(samples.tolist(), columns.tolist(), lengths.tolist(), *words, strict=True)]
