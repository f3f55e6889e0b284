"""Scenes and questions that training never sees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .questions import TASKS, Question, ask
from .scenes import Scene, make_scene

# Entropy words that keep the streams apart: no seed of one is a seed of another.
TRAINING_STREAM, HELD_OUT_STREAM, GROUNDED_STREAM = 11, 97, 131


def held_out(n: int, seed: int = 0) -> Iterator[tuple[Scene, Question]]:
    """Yield ``n`` held-out items, the nine tasks in turn, every item with a scene of its own.

    Parameters
    ----------
    n : int
        Number of items.
    seed : int
        Another seed gives other scenes; all of them differ from the training scenes.

    Yields
    ------
    tuple of Scene and Question
    """
    for index in range(n):
        task = TASKS[index % len(TASKS)]
        rng = np.random.default_rng([HELD_OUT_STREAM, seed, index])
        while True:
            scene = make_scene(rng)
            question = ask(rng, scene, task)
            if question is not None:
                yield scene, question
                break
