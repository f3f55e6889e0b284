"""A budget for each image: its tokens as a row of their own, and what was chosen there put back into the prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.tensors import to_device

if TYPE_CHECKING:
    from foveate.pruners.selection import Selection
    from foveate.pruners.visual_tokens import VisualTokens

DIMENSIONS = {"attention": 3, "keys": 2, "values": 2, "previous": 1}  # of the tokens in what may be None
OF_SAMPLE = ("query", "mean_text", "extra", "text_keys", "text_values", "text", "carried")


@dataclasses.dataclass(frozen=True)
class Images:
    """Some images of a batch, of about the same size.

    Attributes
    ----------
    tokens
        Theirs: rows are images, `grids` those of the image; `dense` counts what there was of it before any pruning.
    place
        (R, M) long, where the tokens come from in the flattened batch; its length for padding.
    columns
        (R, M) long, their columns there.
    """

    tokens: VisualTokens
    place: Tensor
    columns: Tensor


def by_image(tokens: VisualTokens) -> Iterator[Images]:
    """All images of a batch, the largest first; of those in one part, none is over twice as large as another.

    So all rows hold at most twice the tokens. The text of a sample stands in the rows of all its images: parts are so
    small that this takes no more either. Waits for the device once.
    """
    batch, number = tokens.valid.shape
    image = tokens.image.masked_fill(~tokens.valid, -1).cpu()
    grid = tokens.grid.masked_fill(~tokens.valid, -1).cpu()
    order = image.argsort(dim=-1, stable=True)
    found = [one.unique_consecutive(return_counts=True) for one in image.gather(1, order)]
    there = []  # size, sample, image, where it begins in the order
    for sample, (numbers, counts) in enumerate(found):
        begin = (counts.cumsum(0) - counts).tolist()
        there += [
            (count, sample, one, start)
            for one, count, start in zip(numbers.tolist(), counts.tolist(), begin, strict=True)
            if one >= 0
        ]
    there.sort(key=lambda one: -one[0])
    text = max((one.shape[-2] for one in (tokens.text, tokens.text_keys) if one is not None), default=0)
    owners = [_owners(*one) for one in zip(tokens.grids, image, grid, strict=True)]
    before = None if tokens.dense_image is None else tokens.dense_image.cpu()
    while there:
        most = there[0][0]
        room = max(1, 2 * batch * (number + text) // (most + text))
        now = [one for one in there[:room] if 2 * one[0] >= most]
        there = there[len(now) :]
        columns = torch.zeros(len(now), most, dtype=torch.long)
        for row, (count, sample, _, start) in enumerate(now):
            columns[row, :count] = order[sample, start : start + count]
        yield _rows(tokens, columns, now, owners, before)


def _owners(grids: Sequence[object], image: Tensor, grid: Tensor) -> list[int]:
    """The image of each grid of a sample, -1 where none of its tokens is here."""
    owners = torch.full((len(grids),), -1)
    on_grid = grid >= 0
    owners[grid[on_grid]] = image[on_grid]
    return owners.tolist()


def _rows(
    tokens: VisualTokens,
    columns: Tensor,
    images: list[tuple[int, int, int, int]],
    owners: list[list[int]],
    before: Tensor | None,
) -> Images:
    device, number = tokens.valid.device, tokens.valid.shape[1]
    count, sample, which, _ = torch.tensor(images).unbind(1)
    dense = count if before is None else (before[sample] == which[:, None]).sum(-1)
    grids = [
        [place for place, owner in enumerate(owners[row]) if owner == one]
        for row, one in zip(sample.tolist(), which.tolist(), strict=True)
    ]
    numbers = torch.full((len(images), max(1, *map(len, owners))), -1)  # of a grid among those of its image
    for row, places in enumerate(grids):
        numbers[row, places] = torch.arange(len(places))
    columns, rows, numbers = (to_device(one, device) for one in (columns, sample, numbers))
    valid = torch.arange(columns.shape[1], device=device) < to_device(count, device)[:, None]

    def picked(tensor: Tensor, dim: int = 1, absent: float = 0) -> Tensor:
        own = tensor.movedim(dim, 1)[rows[:, None], columns]
        return own.masked_fill_(~valid.view(*valid.shape, *[1] * (own.ndim - 2)), absent).movedim(1, dim)

    grid = picked(tokens.grid, absent=-1)
    changes: dict[str, Any] = {
        name: picked(getattr(tokens, name), absent=-1) for name in ("position", "image", "row", "column")
    }
    for name in ("vision", "received", "class_received"):
        changes[name] = tuple(picked(one) for one in getattr(tokens, name))
    for name, dim in DIMENSIONS.items():
        tensor = getattr(tokens, name)
        changes[name] = None if tensor is None else picked(tensor, dim)
    for name in OF_SAMPLE:
        tensor = getattr(tokens, name)
        changes[name] = None if tensor is None else tensor.index_select(0, rows)
    if tokens.rotary is not None:
        changes["rotary"] = tuple(picked(one) for one in tokens.rotary)
    if tokens.text_rotary is not None:
        changes["text_rotary"] = tuple(one.index_select(0, rows) for one in tokens.text_rotary)
    shown = dataclasses.replace(
        tokens,
        features=picked(tokens.features),
        valid=valid,
        dense=dense,
        dense_image=None,
        present=count,
        grid=numbers.gather(1, grid.clamp(min=0)).masked_fill(grid < 0, -1),
        grids=tuple(
            tuple(tokens.grids[row][place] for place in places)
            for row, places in zip(sample.tolist(), grids, strict=True)
        ),
        **changes,
    )
    place = (rows[:, None] * number + columns).masked_fill(~valid, tokens.valid.numel())
    return Images(shown, place, columns)


def chosen_by_image(tokens: VisualTokens, choose: Callable[[VisualTokens], Tensor | Selection]) -> Tensor | Selection:
    """What `choose` says of each image, for the prompt; see `Pruner.select`."""
    keep = tokens.valid.new_zeros(tokens.valid.numel() + 1)
    into, weight = torch.full_like(keep, -1, dtype=torch.long), torch.ones_like(keep, dtype=torch.float32)
    merges, weighed, last = False, False, None
    for images in by_image(tokens):
        last = choose(images.tokens)
        if isinstance(last, Tensor):
            keep[images.place] = last
            continue
        keep[images.place] = last.keep
        if last.into is not None:
            merges = True
            into[images.place] = images.columns.gather(1, last.into.clamp(min=0)).masked_fill(last.into < 0, -1)
        if last.weight is not None:
            weighed = True
            weight[images.place] = last.weight.to(weight)
    kept, goes, share = (one[:-1].view(tokens.valid.shape) for one in (keep, into, weight))
    if last is None or isinstance(last, Tensor):
        return kept
    return dataclasses.replace(last, keep=kept, into=goes if merges else None, weight=share if weighed else None)
