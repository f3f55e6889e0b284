"""The videos among the images of a prompt: where the tokens of each frame stand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from foveate.families.grids import WHOLE
from foveate.pruners.base import VisualTokens
from foveate.tensors import to_device


def films(tokens: VisualTokens) -> Iterator[tuple[int, Tensor]]:
    """Each video with its sample and the columns (T, P) of the P tokens of its T frames, without separators.

    A video is an image of several grids, equally large, each of which covers the whole. So one of a single frame
    counts as an image, as do frames that the family takes for images of their own. All visual tokens must be there.
    """
    image = tokens.image.cpu()
    for sample, grids in enumerate(tokens.grids):
        starts = [0, *itertools.accumulate(grid.length for grid in grids)]
        numbered = zip((int(image[sample, start]) for start in starts[:-1]), grids, starts, strict=False)
        for _, group in itertools.groupby(numbered, key=lambda one: one[0]):
            _, frames, first = zip(*group, strict=True)
            shapes = {(grid.height, grid.width, grid.row_ends) for grid in frames}
            if len(frames) == 1 or len(shapes) > 1 or any(grid.region != WHOLE for grid in frames):
                continue
            ((height, width, row_ends),) = shapes
            cell = torch.arange(height)[:, None] * (width + row_ends) + torch.arange(width)
            columns = torch.tensor(first)[:, None] + cell.flatten()
            yield sample, to_device(columns, tokens.valid.device)
