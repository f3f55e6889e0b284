"""Large images: 512 x 512 pixels, which a model sees as four tiles in reading order, as models of any size do.

Each quarter is drawn as a scene is, with a background of its own, and no object lies across two of them. Questions are
about the whole image. Boxes of questions are those of the tiles one above the other, as the frames of a clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from foveate.tiny.questions import TASKS, Question, Step, ask, items
from foveate.tiny.scenes import LARGE_STREAM, SIZE, Box, Scene, Style, make_scene

LARGE_TASKS = tuple(task for task in TASKS if task not in ("row", "follow"))  # rows and arrows end at a tile's border
_TILE = Style(most=4, layout="scattered")


def make_large(rng: np.random.Generator) -> Scene:
    """Render one large image."""
    parts = [make_scene(rng, _TILE) for _ in range(4)]
    objects = [
        replace(thing, box=_moved(thing.box, SIZE * (number % 2), SIZE * (number // 2)))
        for number, part in enumerate(parts)
        for thing in part.objects
    ]
    a, b, c, d = (part.image for part in parts)
    return Scene(np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)]), objects)


def _moved(box: Box, right: int, down: int) -> Box:
    return box[0] + right, box[1] + down, box[2] + right, box[3] + down


def stacked(box: Box) -> Box:
    """A box of the large image, in pixels of the tiles one above the other."""
    column, row = box[0] // SIZE, box[1] // SIZE
    return _moved(box, -SIZE * column, SIZE * (2 * row + column - row))


def tiles(scene: Scene) -> np.ndarray:
    """The four tiles in reading order, uint8 (4, 256, 256, 3)."""
    image = scene.image
    return image.reshape(2, SIZE, 2, SIZE, 3).transpose(0, 2, 1, 3, 4).reshape(4, SIZE, SIZE, 3)


def ask_large(rng: np.random.Generator, scene: Scene, task: str) -> Question | None:
    """Make a question of a task of `LARGE_TASKS` about a large image; None where it does not allow one."""
    question = ask(rng, scene, task)
    if question is None:
        return None
    steps = [Step(step.first, step.last, [stacked(box) for box in step.boxes]) for step in question.steps]
    return replace(question, boxes=[stacked(box) for box in question.boxes], steps=steps)


def held_out_large(n: int, seed: int = 0) -> Iterator[tuple[Scene, Question]]:
    """Yield `n` held-out large images with a question each, the tasks in turn; boxes are of the tiles in a column.

    Parameters
    ----------
    n, seed
        See `foveate.tiny.held_out`.

    Yields
    ------
    tuple of Scene and Question
    """
    return items(n, seed, LARGE_STREAM, LARGE_TASKS, make_large, ask_large)
