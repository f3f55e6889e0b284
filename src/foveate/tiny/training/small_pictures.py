"""Small pictures: cut-outs of the scenes that cut no object, alone on an empty canvas.

The canvas around them is no part of the picture, so its visual tokens are taken away, as LLaVA-NeXT takes away the
padding of a picture. With pictures of all sizes the model learns to read few visual tokens as well as many, as models
of many resolutions do; with pictures of one size alone, what it reads hangs on how many tokens are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from foveate.tiny.drawing import PATCH
from foveate.tiny.scenes import Thing
from foveate.tiny.training.optimisers import FAST
from foveate.tiny.training.packing import FEW_OBJECTS, Packed, pack
from foveate.tiny.training.pool import LABELS, Pool
from foveate.tiny.training.recipe import Recipe
from foveate.tiny.training.vision_stage import see, to_pixels

_GREY = 127
_LONGEST = 5.5  # times as long as wide
_STREAM = 91


@dataclass
class SmallPicture:
    """A rectangle of a scene, in patches, and the objects in it."""

    scene: int
    left: int
    top: int
    wide: int
    high: int
    objects: list[Thing]

    def places(self, grid: int) -> np.ndarray:
        """Which of the grid² patches it has, row by row, ascending."""
        across, down = np.arange(self.wide) + self.left, np.arange(self.high) + self.top
        return (down[:, None] * grid + across).ravel()


@dataclass
class SameSize:
    """N small pictures of V patches."""

    tokens: torch.Tensor
    """Projected visual tokens, bfloat16 (N, V, D)."""
    keep: np.ndarray
    """Their places among the grid² patches of the canvas, (N, V)."""
    pool: Pool
    """The objects of each; no images."""


def rectangles(patches: int, grid: int) -> list[tuple[int, int]]:
    """Heights and widths of pictures with so many patches: none is longer than 5.5 times its width."""
    out = []
    for short in range(int(patches**0.5), 0, -1):
        long, rest = divmod(patches, short)
        if not rest and long <= min(grid, _LONGEST * short):
            out += [(short, long), (long, short)] if short < long else [(short, short)]
    return out


def cut_out(rng: np.random.Generator, pool: Pool, patches: int) -> SmallPicture:
    """Draw a cut-out with so many patches that holds an object and cuts none."""
    shapes = rectangles(patches, pool.grid)
    while True:
        scene = int(rng.integers(len(pool)))
        things = pool.objects[scene]
        if not things:
            continue
        high, wide = shapes[int(rng.integers(len(shapes)))]
        x0, y0, x1, y1 = things[int(rng.integers(len(things)))].box
        left, top = (
            (max(0, -(-end // PATCH) - size), min(pool.grid - size, begin // PATCH))
            for begin, end, size in ((x0, x1, wide), (y0, y1, high))
        )
        if left[0] > left[1] or top[0] > top[1]:
            continue
        for _ in range(6):
            at = int(rng.integers(left[0], left[1] + 1)), int(rng.integers(top[0], top[1] + 1))
            inside = _inside(things, (at[0], at[1], at[0] + wide, at[1] + high))
            if inside is not None:
                return SmallPicture(scene, *at, wide, high, inside)


def _inside(things: list[Thing], window: tuple[int, int, int, int]) -> list[Thing] | None:
    """What lies within a window, whose sides are in patches; None where it cuts something."""
    left, top, right, bottom = (PATCH * side for side in window)
    out = []
    for thing in things:
        x0, y0, x1, y1 = thing.box
        if x1 <= left or x0 >= right or y1 <= top or y0 >= bottom:
            continue
        if x0 < left or x1 > right or y0 < top or y1 > bottom:
            return None
        out.append(thing)
    return out


@torch.no_grad()
def small_pictures(model: nn.Module, pool: Pool, recipe: Recipe, path: Path) -> list[SameSize]:
    """Draw the small pictures of a recipe, by size; their visual tokens are kept in `path`."""
    rng = np.random.default_rng([_STREAM, recipe.seed])
    drawn = [[cut_out(rng, pool, patches) for _ in range(count)] for patches, count, _ in recipe.small]
    if not path.is_file():
        torch.save([_tokens(model, pool, pictures) for pictures in drawn], path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return [
        SameSize(
            tokens,
            np.stack([picture.places(pool.grid) for picture in pictures]),
            Pool(
                None,
                np.zeros((len(pictures), len(LABELS), pool.grid**2), np.int8),
                [picture.objects for picture in pictures],
            ),
        )
        for pictures, tokens in zip(drawn, torch.load(path, weights_only=True), strict=True)
    ]


def _tokens(model: nn.Module, pool: Pool, pictures: list[SmallPicture]) -> torch.Tensor:
    place, out = next(model.parameters()).device, []
    for first in range(0, len(pictures), 32):
        some = pictures[first : first + 32]
        side = pool.grid * PATCH
        canvas = np.full((len(some), side, side, 3), _GREY, np.uint8)
        for image, one in zip(canvas, some, strict=True):
            part = (
                slice(PATCH * one.top, PATCH * (one.top + one.high)),
                slice(PATCH * one.left, PATCH * (one.left + one.wide)),
            )
            image[part] = pool.scene(one.scene).image[part]
        seen = see(model, to_pixels(canvas).to(place))[0].bfloat16().cpu()
        keep = torch.from_numpy(np.stack([one.places(pool.grid) for one in some]))
        out.append(seen.gather(1, keep[..., None].expand(-1, -1, seen.shape[2])))
    return torch.cat(out)


class SmallBatches:
    """Batches of small pictures by step number; they depend on the seed and the step alone."""

    def __init__(self, recipe: Recipe, sizes: list[SameSize]):
        self.recipe, self.sizes = recipe, sizes
        weight = np.array([weight for _, _, weight in recipe.small])
        self.chance = weight / weight.sum()

    def __call__(self, step: int) -> tuple[torch.Tensor, Packed] | None:
        """Visual tokens (B, V, D) and packed questions of a step; None in a step without."""
        if not self.sizes or step < self.recipe.small_from or step % self.recipe.small_every:
            return None
        rng = np.random.default_rng([17, self.recipe.seed, step])
        size = self.sizes[int(rng.choice(len(self.sizes), p=self.chance))]
        chosen = rng.choice(len(size.pool), min(self.recipe.batch_language, len(size.pool)), replace=False)
        packed = pack(rng, size.pool, chosen, layout=FEW_OBJECTS)
        packed.keep = size.keep[chosen]
        return size.tokens[torch.from_numpy(chosen)].to(FAST), packed
