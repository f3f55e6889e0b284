"""Pool: the average of each of as many cells of the image as there are places."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.pruners.base import Selection, SingleStagePruner, VisualTokens, option
from foveate.pruners.holov import share_out
from foveate.tensors import to_device


@dataclass(frozen=True, kw_only=True)
class Pool(SingleStagePruner):
    """Average pooling: each grid is cut into r rows and c columns of cells, as many as its places allow.

    Of all r and c with the largest product those are taken that are most nearly in proportion to the grid. A cell's
    average stands at the position of the token in its middle. Grids share the budget by their size; separators leave.
    """

    name: ClassVar[str] = "pool"
    paper: ClassVar[str] = "baseline"
    summary: ClassVar[str] = "the average of each cell of a coarser grid; a baseline"
    uses_grids: ClassVar[bool] = True
    needs_all_tokens: ClassVar[bool] = True

    layer: int = option(0, "cut before this decoder layer, counted from 0; 0 is before the language model", at_least=0)

    def choose(self, tokens: VisualTokens, k: Tensor) -> Selection:
        grid = tokens.grid.masked_fill(~tokens.valid, -1).cpu()
        into = torch.full_like(grid, -1)
        for row, (grids, places) in enumerate(zip(tokens.grids, k.tolist(), strict=True)):
            starts = itertools.accumulate((one.length for one in grids), initial=0)
            here = dict(zip(range(len(grids)), starts, strict=False))
            shown = [number for number in grid[row].unique().tolist() if number in here]
            cells = [grids[number].cells for number in shown]
            shares = share_out([float(one) for one in cells], cells, places) if shown else []
            for number, share in zip(shown, shares, strict=True):
                if share:
                    one = grids[number]
                    cell = torch.arange(one.height)[:, None] * (one.width + one.row_ends) + torch.arange(one.width)
                    middle = cell[middles(one.height, one.width, share)]
                    into[row, here[number] + cell.flatten()] = here[number] + middle.flatten()
        into = to_device(into, tokens.valid.device)
        return Selection(into == torch.arange(into.shape[1], device=into.device), into)


def middles(height: int, width: int, places: int) -> tuple[Tensor, Tensor]:
    """Row (height, 1) and column (1, width) of the middle of the cell in which each row and column is."""
    shapes = [(rows, min(width, places // rows)) for rows in range(1, min(height, places) + 1)]
    rows, columns = max(shapes, key=lambda one: (one[0] * one[1], -abs(one[0] / height - one[1] / width)))
    return _middle(height, rows)[:, None], _middle(width, columns)[None]


def _middle(length: int, cells: int) -> Tensor:
    """(length,) the middle place of the cell that each place is in."""
    cell = torch.arange(length) * cells // length
    first = (torch.arange(cells) * length + cells - 1) // cells
    last = torch.cat([first[1:], torch.tensor([length])]) - 1
    return ((first + last) // 2)[cell]
