"""Stand-in until the data branch is merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.families import Grid


def target_mask(boxes: Sequence[Sequence[float]], grids: Sequence[Grid]) -> Tensor:
    """(N,) bool, cells that any box touches."""
    (grid,) = grids
    mask = torch.zeros(grid.height, grid.width, dtype=torch.bool)
    for x1, y1, x2, y2 in boxes:
        rows = slice(int(y1 * grid.height), min(int(y2 * grid.height), grid.height - 1) + 1)
        columns = slice(int(x1 * grid.width), min(int(x2 * grid.width), grid.width - 1) + 1)
        mask[rows, columns] = True
    return mask.flatten()
