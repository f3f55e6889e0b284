"""What is asked of several images at once: clips, large images in tiles, two scenes; and single ones beside them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.tiny.clips import CLIP_LONG_TASKS, CLIP_TASKS, FRAMES, ask_clip, make_clip
from foveate.tiny.large import LARGE_TASKS, ask_large, make_large, stacked, tiles
from foveate.tiny.pairs import PAIR_TASKS, could_mean
from foveate.tiny.questions import LONG_TASKS, TASKS, Question, Step, ask
from foveate.tiny.scenes import GRID, MANY_STREAM, SIZE, TOKENS, Box, Scene, make_scene
from foveate.tiny.training.packing import LAYOUT, SHARES, Layout, Packed, drawn, empty, fill, show
from foveate.tiny.training.vision_stage import see, to_pixels

Thing = Any
"""A clip, a large image, two scenes or one."""


@dataclass(frozen=True)
class Kind:
    """What a prompt shows and how it is asked about.

    `make` draws one, `pixels` gives its images (F, 256, 256, 3), `boxes` those of its objects in the images one above
    the other, `ask` a question of a task.
    """

    images: int
    make: Callable[[np.random.Generator], Thing]
    pixels: Callable[[Thing], np.ndarray]
    boxes: Callable[[Thing], list[Box]]
    ask: Callable[[np.random.Generator, Thing, str], Question | None]
    tasks: tuple[str, ...]
    long: tuple[str, ...] = LONG_TASKS
    layout: Layout = LAYOUT
    short: int = 13

    @property
    def visual(self) -> int:
        """Visual tokens of one."""
        return self.images * TOKENS


def _lower(box: Box, place: int) -> Box:
    return box[0], box[1] + SIZE * place, box[2], box[3] + SIZE * place


def _ask_pair(rng: np.random.Generator, scenes: tuple[Scene, Scene], task: str) -> Question | None:
    """A question about one of two scenes, which could mean nothing of the other."""
    place = int(rng.integers(2))
    question = ask(rng, scenes[place], task)
    if question is None or could_mean(question, scenes[place], scenes[1 - place]):
        return None
    steps = [Step(s.first, s.last, [_lower(box, place) for box in s.boxes]) for s in question.steps]
    return replace(question, boxes=[_lower(box, place) for box in question.boxes], steps=steps)


KINDS = {
    "clip": Kind(
        FRAMES,
        make_clip,
        lambda clip: clip.frames(),
        lambda clip: [box for track in clip.tracks for box in track.boxes()],
        ask_clip,
        CLIP_TASKS,
        CLIP_LONG_TASKS,
        ((5, 10), (5, 13), (6, 15), (3, 23)),
        15,
    ),
    "large": Kind(4, make_large, tiles, lambda scene: [stacked(t.box) for t in scene.objects], ask_large, LARGE_TASKS),
    "pair": Kind(
        2,
        lambda rng: (make_scene(rng), make_scene(rng)),
        lambda scenes: np.stack([scene.image for scene in scenes]),
        lambda scenes: [_lower(t.box, place) for place, scene in enumerate(scenes) for t in scene.objects],
        _ask_pair,
        PAIR_TASKS,
        layout=((3, 10), (3, 13), (2, 18), (2, 23)),
    ),
    "single": Kind(
        1, make_scene, lambda scene: scene.image[None], lambda scene: [t.box for t in scene.objects], ask, TASKS
    ),
}


def _bare(thing: Thing) -> Thing:
    """Without its picture, which the questions do not need."""
    if isinstance(thing, tuple):
        return tuple(_bare(scene) for scene in thing)
    return replace(thing, image=np.zeros((thing.side, 1, 3), np.uint8)) if isinstance(thing, Scene) else thing


@torch.no_grad()
def cached(
    model: torch.nn.Module, kind: str, count: int, seed: int, path: Path, progress: Callable[[int], None] | None = None
) -> tuple[list[Thing], torch.Tensor]:
    """Draw `count` of a kind and keep them in `path`, with their projected visual tokens, bfloat16 (N, V, D)."""
    if not path.is_file():
        what, number, things, tokens = KINDS[kind], list(KINDS).index(kind), [], []
        for index in range(count):
            thing = what.make(np.random.default_rng([MANY_STREAM, seed, number, index]))
            tokens.append(see(model, to_pixels(what.pixels(thing)))[0].flatten(0, 1).bfloat16())
            things.append(_bare(thing))
            if progress:
                progress(index + 1)
        torch.save(torch.stack(tokens), path.with_suffix(".tokens"))
        path.write_bytes(pickle.dumps(things))
    return pickle.loads(path.read_bytes()), torch.load(path.with_suffix(".tokens"), weights_only=True, mmap=True)


def packed(
    rng: np.random.Generator, kind: str, things: list[Thing], visual: int, shares: dict[str, float] = SHARES
) -> Packed:
    """Questions about each of some things of a kind, of whose visual tokens `visual` are shown."""
    what = KINDS[kind]
    out = empty(len(things), visual, what.layout)
    weight = np.array([shares.get(task, 1.0) for task in what.tasks])
    for b, thing in enumerate(things):
        boxes = what.boxes(thing)
        shown, whole = show(rng, boxes, visual, GRID, GRID * what.images)
        out.keep[b] = np.flatnonzero(shown)
        slots = sum(count for count, _ in what.layout)
        asked: Iterator[Question | None] = drawn(rng, what.tasks, weight, slots, partial(what.ask, rng, thing))
        fill(out, b, asked, whole, len(whole) == len(set(boxes)), what.long, what.short)
    return out
