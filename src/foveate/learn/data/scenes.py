"""Grounded samples of the embedded model's scenes."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np

from foveate.learn.data.rows import shares
from foveate.learn.data.sample import GroundedSample, GroundedSamples, Progress, fingerprint
from foveate.learn.errors import TrainingDataError


def from_scenes(
    number: int, seed: int, per_scene: int = 9, progress: Progress | None = None, *, hard: bool = False
) -> GroundedSamples:
    """Questions about scenes of the embedded model, its tasks in turn; no scene of them is ever in an evaluation.

    Where the answer says that something is absent, the boxes are what could be mistaken for it, if anything.

    Parameters
    ----------
    number, seed
        How many, and which.
    per_scene
        The most questions about one scene; drawing it takes longer than all else here.
    progress
        Called with what is done, how many and of how many.
    hard
        Take scenes and questions of the harder split, `foveate.tiny.held_out_hard`.

    Raises
    ------
    TrainingDataError
        No sample, or no question a scene, was asked for.
    """
    if number < 1 or per_scene < 1:
        raise TrainingDataError(f"at least one sample and one question a scene, got {number} and {per_scene}")
    from foveate import tiny
    from foveate.tiny.scenes import GROUNDED_STREAM, HARD_GROUNDED_STREAM, TRAINED

    stream, tasks, style, ask = GROUNDED_STREAM, tiny.TASKS, TRAINED, tiny.ask
    if hard:
        stream, tasks, style, ask = HARD_GROUNDED_STREAM, tiny.HARD_TASKS, tiny.HARD_STYLE, tiny.ask_hard
    places = {task: list(range(number))[turn :: len(tasks)] for turn, task in enumerate(tasks)}
    items: dict[int, GroundedSample] = {}
    digest = hashlib.sha256()
    for index in itertools.count():
        rng = np.random.default_rng([stream, seed, index])
        scene = tiny.make_scene(rng, style)
        image = scene.pil()
        digest.update(image.tobytes())
        # the task that misses most first, so that none is left for scenes of its own
        missing = sorted((task for task in places if places[task]), key=lambda task: -len(places[task]))
        asked = 0
        for task in missing:
            if asked < per_scene and (question := ask(rng, scene, task)) is not None:
                boxes = tuple(shares(box, *image.size) for box in question.boxes)
                items[places[task].pop(0)] = GroundedSample(question.text, question.answer, image, boxes, task)
                asked += 1
        if progress:
            progress("drawing the scenes", len(items), number)
        if len(items) == number:
            break
    ordered = tuple(items[place] for place in range(number))
    return GroundedSamples(
        ordered, f"{'scenes-hard' if hard else 'scenes'}, seed {seed}", fingerprint(digest, ordered)
    )
