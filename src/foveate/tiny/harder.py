"""The harder split: crowded scenes whose objects are alike, and forms of question that training never used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from foveate.tiny.questions import (
    Question,
    alone,
    ask,
    characters,
    direction,
    from_left,
    items,
    listed,
    named_pairs,
    pick,
)
from foveate.tiny.scenes import HARD_HELD_OUT_STREAM, Scene, Style, make_scene
from foveate.tiny.vocabulary import COLOURS, KINDS, PLURALS, SIZES

HARD_STYLE = Style(
    fewest=14,
    most=24,
    hidden=0.5,
    layout="scattered",
    sizes=(0.55, 0.3, 0.15),
    colours=5,
    kinds=5,
    tries=600,
)
HARD_TASKS = (
    "colour",
    "shape",
    "relation",
    "read-number",
    "relation-sign",
    "exist-size",
    "count-kind",
    "letters",
    "colours-size",
)


def _read_number(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = [t for t in named_pairs(scene) if t.text.isdigit()]
    if not signs:
        return None
    sign = pick(rng, signs)
    return characters("read-number", f"which number is on the {sign.colour} sign?", sign)


def _letters(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = [t for t in named_pairs(scene) if t.text.isalpha()]
    if not signs:
        return None
    sign = pick(rng, signs)
    return characters("letters", f"name each letter of the {sign.colour} sign.", sign)


def _relation_sign(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = alone([t for t in scene.objects if t.text.isdigit()], lambda t: t.text)
    shapes = [t for t in named_pairs(scene) if t.size]
    if not signs or not shapes:
        return None
    for _ in range(8):
        thing, sign = pick(rng, shapes), pick(rng, signs)
        answer = direction(thing, sign)
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
    size, colour, kind = pick(rng, options)
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
    count = pick(rng, sorted({len(members) for _, members in groups}))
    name, members = pick(rng, [group for group in groups if len(group[1]) == count])
    return Question("count-kind", f"how many {name} are there?", str(count), [t.box for t in members])


def _colours_size(rng: np.random.Generator, scene: Scene) -> Question | None:
    groups = [
        (f"{size} {PLURALS[kind]}", from_left(t for t in scene.objects if (t.size, t.kind) == (size, kind)))
        for size in SIZES
        for kind in KINDS
    ]
    groups = [(name, members) for name, members in groups if members and 2 <= len(members) <= 5]
    if not groups:
        return None
    name, group = pick(rng, groups)
    text = f"list the colours of the {name} from left to right."
    return listed("colours-size", text, [t.colour for t in group], [[t.box] for t in group])


_MAKERS: dict[str, Callable[[np.random.Generator, Scene], Question | None]] = {
    "read-number": _read_number,
    "relation-sign": _relation_sign,
    "exist-size": _exist_size,
    "count-kind": _count_kind,
    "letters": _letters,
    "colours-size": _colours_size,
}


def ask_hard(rng: np.random.Generator, scene: Scene, task: str) -> Question | None:
    """Make a question of a task of the harder split; None where the scene does not allow one without doubt.

    Parameters
    ----------
    rng
    scene
    task
        One of `HARD_TASKS`.

    Raises
    ------
    ValueError
        There is no such task.
    """
    if task not in HARD_TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(HARD_TASKS)}")
    return _MAKERS[task](rng, scene) if task in _MAKERS else ask(rng, scene, task)


def held_out_hard(n: int, seed: int = 0) -> Iterator[tuple[Scene, Question]]:
    """Yield `n` held-out items of the harder split, its tasks in turn, every item with a scene of its own.

    Parameters
    ----------
    n, seed
        See `foveate.tiny.held_out`.

    Yields
    ------
    tuple of Scene and Question
    """
    return items(n, seed, HARD_HELD_OUT_STREAM, HARD_TASKS, partial(make_scene, style=HARD_STYLE), ask_hard)
