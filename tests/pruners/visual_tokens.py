"""`VisualTokens` by hand, as a stage would show them."""

from __future__ import annotations

import torch

from foveate.engine.layout import _places
from foveate.pruners import VisualTokens


def visual_tokens(grids, lost: int = 0, heads: int = 4) -> VisualTokens:
    """Tokens of samples with these grids; the last `lost` tokens of the last sample are gone."""
    counts = [sum(grid.length for grid in row) for row in grids]
    left = [*counts[:-1], max(counts[-1] - lost, 0)]
    batch, number = len(grids), max(left)
    places = torch.full((4, batch, number), -1)
    for sample, row in enumerate(grids):
        if row:
            places[:, sample, : left[sample]] = _places([(grid,) for grid in row])[:, : left[sample]]
    valid = torch.arange(number) < torch.tensor(left)[:, None]
    torch.manual_seed(0)
    attention = torch.rand(batch, heads, 1, number).masked_fill(~valid[:, None, None], 0)
    return VisualTokens(
        layer=4,
        features=torch.randn(batch, number, 8),
        valid=valid,
        dense=torch.tensor(counts),
        present=torch.tensor(left),
        position=torch.arange(number).expand(batch, -1).masked_fill(~valid, -1),
        image=places[0],
        grid=places[1],
        row=places[2],
        column=places[3],
        grids=tuple(map(tuple, grids)),
        grids_known=True,
        query=torch.randn(batch, 8),
        mean_text=torch.randn(batch, 8),
        attention=attention,
        extra=torch.zeros(batch, 0, 8),
    )
