"""A harder split: crowded scenes of few colours and shapes, and questions in forms that training never used.

All words are in the vocabulary. New is how things are named and asked for: by size, colour and kind together, by
colour and kind in a count, by a sign's number in a relation, and "which number is on" for a sign. Every question has
evidence.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foveate.tiny.questions import Question, _alone, _direction, _pairs, _pick
from foveate.tiny.questions import ask as ask_trained
from foveate.tiny.scenes import Scene, Style
from foveate.tiny.vocabulary import COLOURS, KINDS, PLURALS, SIZES

HARD_STYLE = Style(fewest=14, most=24, sizes=(0.55, 0.3, 0.15), hidden=0.5, colours=5, kinds=5)
HARD_TASKS = ("colour", "shape", "relation", "read-number", "relation-sign", "exist-size", "count-kind")


def _read_number(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = [t for t in _pairs(scene) if t.text]
    if not signs:
        return None
    sign = _pick(rng, signs)
    return Question("read-number", f"which number is on the {sign.colour} sign?", sign.text, [sign.box])


def _relation_sign(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = _alone([t for t in scene.objects if t.text], lambda t: t.text)
    shapes = [t for t in _pairs(scene) if t.size]
    if not signs or not shapes:
        return None
    for _ in range(8):
        thing, sign = _pick(rng, shapes), _pick(rng, signs)
        answer = _direction(thing, sign)
        if answer is not None:
            text = f"where is the {thing.colour} {thing.kind} from the sign with {sign.text}?"
            return Question("relation-sign", text, answer, [thing.box, sign.box])
    return None


def _exist_size(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Answered "no", colour and kind are there in one object, but not in that size; the boxes hold those objects."""
    present = sorted({(t.size, t.colour, t.kind) for t in scene.objects if t.size})
    if not present:
        return None
    if rng.random() < 0.5:
        answer, options = "yes", present
    else:
        answer = "no"
        options = sorted({(s, c, k) for s in SIZES for _, c, k in present} - set(present))
        if not options:
            return None
    size, colour, kind = _pick(rng, options)
    named = [t for t in scene.objects if (t.colour, t.kind) == (colour, kind)]
    boxes = [t.box for t in named if answer == "no" or t.size == size]
    return Question("exist-size", f"is there a {size} {colour} {kind}?", answer, boxes)


def _count_kind(rng: np.random.Generator, scene: Scene) -> Question | None:
    groups = [
        (f"{colour} {PLURALS[kind]}", [t for t in scene.objects if (t.colour, t.kind) == (colour, kind)])
        for colour in COLOURS
        for kind in KINDS
    ]
    groups = [(name, members) for name, members in groups if 1 <= len(members) <= 9]
    if not groups:
        return None
    count = _pick(rng, sorted({len(members) for _, members in groups}))
    name, members = _pick(rng, [group for group in groups if len(group[1]) == count])
    return Question("count-kind", f"how many {name} are there?", str(count), [t.box for t in members])


_HARD_MAKERS: dict[str, Callable[[np.random.Generator, Scene], Question | None]] = {
    "read-number": _read_number,
    "relation-sign": _relation_sign,
    "exist-size": _exist_size,
    "count-kind": _count_kind,
}


def ask_hard(rng: np.random.Generator, scene: Scene, task: str) -> Question | None:
    """Make a question of a task of the harder split; None where the scene does not allow one without doubt.

    Parameters
    ----------
    rng : numpy.random.Generator
    scene : Scene
    task : str
        One of ``HARD_TASKS``.
    """
    if task not in HARD_TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(HARD_TASKS)}")
    return _HARD_MAKERS[task](rng, scene) if task in _HARD_MAKERS else ask_trained(rng, scene, task)
