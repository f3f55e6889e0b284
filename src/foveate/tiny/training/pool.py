"""A fixed pool of rendered training scenes on disk: images, patch labels, objects."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from foveate.tiny.drawing import GLYPHS, PATCH
from foveate.tiny.questions import cover
from foveate.tiny.scenes import GRID, SIZE, TRAINING_STREAM, Scene, Style, Thing, make_scene
from foveate.tiny.vocabulary import COLOURS, KINDS, SIZES

IGNORE = -1  # the label of a patch that is asked nothing
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")  # of a character of a sign
LABELS = ("kind", "colour", "size", "glyph", "place", "more", "centre")
_COLOURS = tuple(COLOURS)


def patch_labels(objects: list[Thing], grid: int = GRID) -> np.ndarray:
    """What each patch shows.

    Returns
    -------
    numpy.ndarray
        int8 (7, grid²), rows as in `LABELS`; 0 is "nothing", -1 "ask nothing here" (a patch barely touched).
        `glyph`, `place` (1-6) and `more` (1: another character follows, 2: the last one) are for the
        characters of signs.
    """
    out = np.zeros((len(LABELS), grid**2), dtype=np.int8)
    best = np.zeros(grid**2)
    for thing in objects:
        covered = cover([thing.box], grid)
        x0, y0, x1, y1 = thing.box
        share = covered * PATCH**2 / ((x1 - x0) * (y1 - y0))
        mine = ((covered >= 0.3) | (share >= 0.3)) & (covered > best)
        touched = (covered > 0) & (covered > best) & ~mine & (out[0] == 0)
        out[:6, touched] = IGNORE
        best = np.where(mine, covered, best)
        out[0, mine] = KINDS.index(thing.kind) + 1
        out[1, mine] = _COLOURS.index(thing.colour) + 1
        out[2, mine] = SIZES.index(thing.size) + 1 if thing.size else 0
        out[3:6, mine] = 0
        for index, name in enumerate(thing.glyphs):
            patch = int(cover([thing.glyph_box(index)], grid).argmax())
            out[3, patch] = GLYPHS.index(name) + 1
            out[4, patch] = index + 1 if index < len(thing.text) else IGNORE
            out[5, patch] = (2 if index == len(thing.text) - 1 else 1) if index < len(thing.text) else IGNORE
        x, y = thing.centre
        out[6, int(y // PATCH) * grid + int(x // PATCH)] = 1
    return out


@dataclass
class Pool:
    """Scenes: `images` (N, side, side, 3) uint8, `labels` (N, 7, grid²) int8, `objects` one list a scene.

    `images` is None once they are deleted to free the disk: the language stage needs them no more.
    """

    images: np.ndarray | None
    labels: np.ndarray
    objects: list[list[Thing]]

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return math.isqrt(self.labels.shape[2])

    def scene(self, index: int) -> Scene:
        """The scene with this number; without its image where the pool has lost it."""
        side = self.grid * PATCH
        image = np.zeros((side, side, 3), np.uint8) if self.images is None else self.images[index]
        return Scene(image, self.objects[index])


def read_pool(folder: Path) -> Pool:
    """Open a rendered pool."""
    with open(folder / "objects.jsonl") as file:
        objects = [[Thing(**{**o, "box": tuple(o["box"])}) for o in json.loads(line)] for line in file]
    images = folder / "images.npy"
    return Pool(np.load(images, mmap_mode="r") if images.is_file() else None, np.load(folder / "labels.npy"), objects)


def render_pool(
    folder: Path,
    count: int,
    seed: int,
    stream: int = TRAINING_STREAM,
    progress: Callable[[int], None] | None = None,
    side: int = SIZE,
) -> Pool:
    """Render `count` scenes into `folder`, or open them where they are there already.

    Scene `i` depends on the stream, the seed, the side in pixels and on `i` alone.
    """
    what = {"count": count, "seed": seed, "stream": stream}
    if side != SIZE:
        what["side"] = side
    grid = side // PATCH
    done = folder / "pool.json"
    if done.is_file() and json.loads(done.read_text()) == what:
        return read_pool(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(count, side, side, 3))
    labels = np.zeros((count, len(LABELS), grid**2), dtype=np.int8)
    with open(folder / "objects.jsonl", "w") as file:
        for index in range(count):
            scene = make_scene(np.random.default_rng([stream, seed, index]), Style(side=side))
            images[index], labels[index] = scene.image, patch_labels(scene.objects, grid)
            file.write(json.dumps([asdict(thing) for thing in scene.objects]) + "\n")
            if progress:
                progress(index + 1)
    images.flush()
    np.save(folder / "labels.npy", labels)
    done.write_text(json.dumps(what))
    return read_pool(folder)
