"""Scenes and questions that training never sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from foveate.tiny.questions import HARD_STYLE, HARD_TASKS, TASKS, Question, ask, ask_hard
from foveate.tiny.scenes import TRAINED, Scene, Style, make_scene

# Entropy words that keep the streams apart: no seed of one is a seed of another.
TRAINING_STREAM, HELD_OUT_STREAM, GROUNDED_STREAM = 11, 97, 131
HARD_HELD_OUT_STREAM, HARD_GROUNDED_STREAM = 151, 173


def held_out(n: int, seed: int = 0) -> Iterator[tuple[Scene, Question]]:
    """Yield `n` held-out items, the nine tasks in turn, every item with a scene of its own.

    Parameters
    ----------
    n
        Number of items.
    seed
        Another seed gives other scenes; all of them differ from the training scenes.

    Yields
    ------
    tuple of Scene and Question
    """
    return _items(n, seed, HELD_OUT_STREAM, TASKS, TRAINED, ask)


def held_out_hard(n: int, seed: int = 0) -> Iterator[tuple[Scene, Question]]:
    """Yield `n` held-out items of the harder split, its tasks in turn, every item with a scene of its own.

    Parameters
    ----------
    n, seed
        See `held_out`.

    Yields
    ------
    tuple of Scene and Question
    """
    return _items(n, seed, HARD_HELD_OUT_STREAM, HARD_TASKS, HARD_STYLE, ask_hard)


def _items(
    n: int,
    seed: int,
    stream: int,
    tasks: tuple[str, ...],
    style: Style,
    asked: Callable[[np.random.Generator, Scene, str], Question | None],
) -> Iterator[tuple[Scene, Question]]:
    for index in range(n):
        rng = np.random.default_rng([stream, seed, index])
        while True:
            scene = make_scene(rng, style)
            question = asked(rng, scene, tasks[index % len(tasks)])
            if question is not None:
                yield scene, question
                break
