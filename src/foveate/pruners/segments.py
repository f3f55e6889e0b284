"""Variable-length attention: tokens of many images in one long row, attention inside each image only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruners.base import VisualTokens


@dataclass(frozen=True)
class Segments:
    """Which tokens of a long row belong together.

    Attributes
    ----------
    order
        (T,) long, places in the flattened (B, N) batch of all visual tokens, so that segments of one length follow
        one another.
    groups
        (number, length) of segments, in that order; known on the host, so nothing is padded or synced.
    """

    order: Tensor
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, tokens: VisualTokens, window: int = 0) -> Segments:
        """One segment a grid: an image, or each crop, tile or frame of it; a separator is a segment of its own.

        Parameters
        ----------
        window
            Cut each grid into squares of so many rows and columns, each a segment; 0: do not.
        """
        batch = tokens.valid.shape[0]
        most = max(map(len, tokens.grids), default=0)
        own = torch.arange(batch, device=tokens.grid.device)[:, None] * most + tokens.grid
        number = batch * most
        if window:
            sizes = [(grid.height, grid.width) for grids in tokens.grids for grid in grids]
            high, wide = (max((-(-size[axis] // window) for size in sizes), default=1) for axis in (0, 1))
            own = (own * high + tokens.row // window) * wide + tokens.column // window
            number *= high * wide
        lone, padding = number, number + 1
        segment = torch.where(tokens.grid >= 0, own, lone)
        segment = segment.masked_fill(~tokens.valid, padding).flatten()
        lengths = torch.bincount(segment, minlength=padding + 1).tolist()  # one sync; a cut may have left any number
        there = sorted((number for number in range(lone) if lengths[number]), key=lambda number: lengths[number])
        rank = torch.full((padding + 1,), padding)
        rank[torch.tensor([*there, lone], dtype=torch.long)] = torch.arange(len(there) + 1)
        order = rank.to(segment.device)[segment].argsort(stable=True)[: sum(lengths[:padding])]
        counts = Counter(lengths[number] for number in there)
        groups = [(number, length) for length, number in counts.items()]
        return cls(order, (*groups, *([(lengths[lone], 1)] if lengths[lone] else [])))

    def pick(self, tensor: Tensor) -> Tensor:
        """(T, ...) rows of a (B, N, ...) tensor in this order."""
        return tensor.flatten(0, 1)[self.order]

    def pick_each(self, tensors: Sequence[Tensor], like: Tensor) -> Iterator[Tensor]:
        """The same of several tensors, in the type and on the device of `like`, each made when it is asked for."""
        return (self.pick(tensor.to(like)) for tensor in tensors)

    def put(self, values: Tensor, shape: Sequence[int], fill: float) -> Tensor:
        """(B, N) from (T,) values; `fill` elsewhere."""
        full = values.new_full((shape[0] * shape[1],), fill)
        return full.index_copy(0, self.order, values).view(*shape)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Scaled dot-product attention of (T, heads, d) inside each segment; (T, heads, d of the values)."""
        found, start, width = [value[:0]], 0, value.shape[-1]
        # with values of another width torch falls back to a kernel that writes out all N x N products
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
        for number, length in self.groups:
            part = slice(start, start + number * length)
            shaped = [x[part].unflatten(0, (number, length)).transpose(1, 2) for x in (query, key, value)]
            mixed = torch.nn.functional.scaled_dot_product_attention(*shaped)[..., :width]
            found.append(mixed.transpose(1, 2).flatten(0, 1))
            start += number * length
        return torch.cat(found)
