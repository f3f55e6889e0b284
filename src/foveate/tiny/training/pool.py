"""A fixed pool of rendered training scenes on disk: images, patch labels, objects."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from foveate.tiny.questions import HELD_OUT_STREAM, TRAINING_STREAM, overlap
from foveate.tiny.scenes import SIZE, Scene, Thing, make_scene
from foveate.tiny.vocabulary import COLOURS, KINDS, SIZES

LABELS = ("kind", "colour", "size", "digit", "next_digit", "centre")
IGNORE = -1
GRID = 14
_CHUNK = 50
_COLOURS = tuple(COLOURS)


def patch_labels(objects: list[Thing], grid: int = GRID, size: int = SIZE) -> np.ndarray:
    """What each patch shows.

    Returns
    -------
    numpy.ndarray
        int8 (6, grid * grid), rows as in `LABELS`; 0 is "nothing", -1 "ask nothing here" (a patch barely touched).
        `next_digit` is 1-10 for a second digit and 11 for a sign that has none.
    """
    out = np.zeros((len(LABELS), grid * grid), dtype=np.int8)
    best = np.zeros(grid * grid)
    patch = size / grid
    for thing in objects:
        cover = overlap([thing.box], grid, size)
        x0, y0, x1, y1 = thing.box
        share = cover * patch**2 / ((x1 - x0) * (y1 - y0))
        mine = ((cover >= 0.3) | (share >= 0.3)) & (cover > best)
        touched = (cover > 0) & (cover > best) & ~mine & (out[0] == 0)
        out[:5, touched] = IGNORE
        best = np.where(mine, cover, best)
        out[0, mine] = KINDS.index(thing.kind) + 1
        out[1, mine] = _COLOURS.index(thing.colour) + 1
        out[2, mine] = SIZES.index(thing.size) + 1 if thing.size else 0
        out[3, mine] = int(thing.text[0]) + 1 if thing.text else 0
        out[4, mine] = (int(thing.text[1]) + 1 if len(thing.text) > 1 else 11) if thing.text else 0
        x, y = thing.centre
        out[5, int(y // patch) * grid + int(x // patch)] = 1
    return out


@dataclass
class Pool:
    """Scenes: `images` (N, 224, 224, 3) uint8, `labels` (N, 6, 196) int8, `objects` one list a scene."""

    images: np.ndarray
    labels: np.ndarray
    objects: list[list[Thing]]

    def __len__(self) -> int:
        return len(self.objects)

    def scene(self, index: int) -> Scene:
        """The scene with this number."""
        return Scene(self.images[index], self.objects[index])


def _render(job: tuple[int, int, int, int]) -> tuple[int, np.ndarray, np.ndarray, str]:
    stream, seed, first, count = job
    scenes = [make_scene(np.random.default_rng([stream, seed, index])) for index in range(first, first + count)]
    lines = "".join(json.dumps([asdict(thing) for thing in scene.objects]) + "\n" for scene in scenes)
    return first, np.stack([s.image for s in scenes]), np.stack([patch_labels(s.objects) for s in scenes]), lines


def _read(folder: Path) -> Pool:
    with open(folder / "objects.jsonl") as file:
        objects = [[Thing(**{**o, "box": tuple(o["box"])}) for o in json.loads(line)] for line in file]
    return Pool(np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy"), objects)


def render_pool(
    folder: Path,
    count: int,
    seed: int,
    held_out: bool = False,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Pool:
    """Render `count` scenes into `folder`, or open them where they are there already.

    Parameters
    ----------
    folder
    count, seed
        Scene `i` depends on the seed and on `i` alone, not on `count` or `workers`.
    held_out
        Take the stream that training never sees.
    workers
        Processes that render.
    progress
        Called with the number of scenes done so far.
    """
    what = {"count": count, "seed": seed, "held_out": held_out}
    done = folder / "pool.json"
    if done.is_file() and json.loads(done.read_text()) == what:
        return _read(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    shape = (count, SIZE, SIZE, 3)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    labels = np.zeros((count, len(LABELS), GRID * GRID), dtype=np.int8)
    # A held-out pool must differ from `held_out`'s items too, hence the 1.
    stream = HELD_OUT_STREAM + 1 if held_out else TRAINING_STREAM
    jobs = [(stream, seed, first, min(_CHUNK, count - first)) for first in range(0, count, _CHUNK)]
    with get_context("spawn").Pool(workers) as pool, open(folder / "objects.jsonl", "w") as file:
        for first, pictures, patches, lines in pool.imap(_render, jobs):
            images[first : first + len(pictures)] = pictures
            labels[first : first + len(pictures)] = patches
            file.write(lines)
            if progress:
                progress(first + len(pictures))
    images.flush()
    np.save(folder / "labels.npy", labels)
    done.write_text(json.dumps(what))
    return _read(folder)
