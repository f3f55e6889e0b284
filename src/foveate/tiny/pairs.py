"""Two scenes and a question about one of them: which one, only the things that the question names say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from foveate.tiny.questions import Question, ask, items
from foveate.tiny.scenes import PAIR_STREAM, TRAINED, Box, Scene, make_scene

PAIR_TASKS = ("read", "find", "number", "spell", "position", "relation")  # they name each thing that they ask about


def could_mean(question: Question, scene: Scene, other: Scene) -> bool:
    """Whether something in the other scene has the colour and kind, or the text, of a thing that is asked about."""
    meant = [thing for thing in scene.objects if any(_within(box, thing.box) for box in question.boxes)]
    names = {(thing.colour, thing.kind) for thing in meant}
    texts = {thing.text for thing in meant if thing.text}
    return any((thing.colour, thing.kind) in names or thing.text in texts for thing in other.objects)


def _within(part: Box, box: Box) -> bool:
    """Whether a box lies in another: a question about a sign has a box for each character."""
    return part[0] >= box[0] and part[1] >= box[1] and part[2] <= box[2] and part[3] <= box[3]


def held_out_pairs(n: int, seed: int = 0) -> Iterator[tuple[Scene, Scene, Question]]:
    """Yield `n` pairs of held-out scenes, the tasks in turn: the one that is asked about, the other, and the question.

    Parameters
    ----------
    n, seed
        See `foveate.tiny.held_out`.

    Yields
    ------
    tuple of Scene, Scene and Question
    """
    for index, (scene, question) in enumerate(items(n, seed, PAIR_STREAM, PAIR_TASKS, make_scene, ask)):
        rng = np.random.default_rng([PAIR_STREAM, seed, index, 1])
        other = make_scene(rng, TRAINED)
        while could_mean(question, scene, other):
            other = make_scene(rng, TRAINED)
        yield scene, other, question
