"""Kinds of questions about a scene, each with its answer and the boxes that hold the evidence; the held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from foveate.tiny.scenes import TRAINED, Scene, Style, Thing, make_scene
from foveate.tiny.vocabulary import COLOURS, KINDS, PLURALS, SIZES

TASKS = ("colour", "shape", "size", "read", "find", "relation", "exist", "count", "position")
# One object answers these (the others compare, search or count).
SINGLE_EVIDENCE = ("colour", "shape", "size", "read", "find", "position")
_MARGIN = 12  # pixels between "left" and "right" of something


@dataclass
class Question:
    """One question about one scene.

    `boxes` (x0, y0, x1, y1 in pixels) hold all that the answer needs. Where the answer says that something is
    absent, they hold what could be mistaken for it: for "is there a ...?" answered "no" the objects of that colour or
    that kind; for a count of 0 nothing. Either can be empty.
    """

    task: str
    text: str
    answer: str
    boxes: list[tuple[int, int, int, int]]


def alone(things: Iterable[Thing], key: Callable[[Thing], Hashable]) -> list[Thing]:
    """The things whose `key` no other thing shares."""
    groups: dict[Hashable, list[Thing]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return [group[0] for group in groups.values() if len(group) == 1]


def pick(rng: np.random.Generator, options: list) -> object:
    """One of the options, drawn evenly."""
    return options[int(rng.integers(len(options)))]


def _colour(rng: np.random.Generator, scene: Scene) -> Question | None:
    things = scene.objects
    named = [(t, t.kind) for t in alone(things, lambda t: t.kind) if t.size]
    named += [(t, f"{t.size} {t.kind}") for t in alone(things, lambda t: (t.kind, t.size)) if t.size]
    if not named:
        return None
    thing, name = pick(rng, named)
    return Question("colour", f"what colour is the {name}?", thing.colour, [thing.box])


def _shape(rng: np.random.Generator, scene: Scene) -> Question | None:
    things = scene.objects
    named = [(t, t.colour) for t in alone(things, lambda t: t.colour) if t.size]
    named += [(t, f"{t.size} {t.colour}") for t in alone(things, lambda t: (t.colour, t.size)) if t.size]
    if not named:
        return None
    thing, name = pick(rng, named)
    return Question("shape", f"what shape is the {name} object?", thing.kind, [thing.box])


def _pairs(scene: Scene) -> list[Thing]:
    """Things that colour and kind name without doubt."""
    return alone(scene.objects, lambda t: (t.colour, t.kind))


def _size(rng: np.random.Generator, scene: Scene) -> Question | None:
    options = [t for t in _pairs(scene) if t.size]
    if not options:
        return None
    sizes = sorted({t.size for t in options})
    size = pick(rng, sizes)  # every answer about equally often
    thing = pick(rng, [t for t in options if t.size == size])
    return Question("size", f"what size is the {thing.colour} {thing.kind}?", thing.size, [thing.box])


def _read(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = [t for t in _pairs(scene) if t.text]
    if not signs:
        return None
    sign = pick(rng, signs)
    return Question("read", f"what does the {sign.colour} sign say?", sign.text, [sign.box])


def _find(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = alone([t for t in scene.objects if t.text], lambda t: t.text)
    if not signs:
        return None
    sign = pick(rng, signs)
    return Question("find", f"what colour is the sign with {sign.text}?", sign.colour, [sign.box])


def direction(first: Thing, second: Thing) -> str | None:
    """Where the first lies from the second; None where they are too close or the direction is not clear."""
    dx, dy = (a - b for a, b in zip(first.centre, second.centre, strict=True))
    if max(abs(dx), abs(dy)) < 2 * _MARGIN or max(abs(dx), abs(dy)) < 1.35 * min(abs(dx), abs(dy)):
        return None
    return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")


def _relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    options = _pairs(scene)
    if len(options) < 2:
        return None
    for _ in range(8):
        i, j = rng.choice(len(options), 2, replace=False)
        first, second = options[i], options[j]
        answer = direction(first, second)
        if answer is None:
            continue
        text = f"where is the {first.colour} {first.kind} from the {second.colour} {second.kind}?"
        return Question("relation", text, answer, [first.box, second.box])
    return None


def _exist(rng: np.random.Generator, scene: Scene) -> Question | None:
    present = sorted({(t.colour, t.kind) for t in scene.objects})
    if not present:
        return None
    if rng.random() < 0.5:
        colour, kind = pick(rng, present)
        boxes = [t.box for t in scene.objects if (t.colour, t.kind) == (colour, kind)]
        return Question("exist", f"is there a {colour} {kind}?", "yes", boxes)
    # Hard negatives: the colour is there and the kind is there, but not in one object.
    crossed = [(c, k) for c in sorted({c for c, _ in present}) for k in sorted({k for _, k in present})]
    absent = [pair for pair in crossed if pair not in present]
    if not absent or rng.random() < 0.3:
        absent = [(c, k) for c in COLOURS for k in KINDS if (c, k) not in present]
    colour, kind = pick(rng, absent)
    boxes = [t.box for t in scene.objects if t.colour == colour or t.kind == kind]
    return Question("exist", f"is there a {colour} {kind}?", "no", boxes)


def _count(rng: np.random.Generator, scene: Scene) -> Question | None:
    groups = [(PLURALS[k], [t for t in scene.objects if t.kind == k]) for k in KINDS]
    groups += [(f"{c} objects", [t for t in scene.objects if t.colour == c]) for c in COLOURS]
    groups = [(name, members) for name, members in groups if len(members) <= 9]
    count = pick(rng, sorted({len(members) for _, members in groups}))  # small counts must not dominate
    name, members = pick(rng, [group for group in groups if len(group[1]) == count])
    return Question("count", f"how many {name} are there?", str(count), [t.box for t in members])


def _position(rng: np.random.Generator, scene: Scene) -> Question | None:
    middle = scene.image.shape[0] / 2
    options = [t for t in _pairs(scene) if min(abs(c - middle) for c in t.centre) > _MARGIN]
    if not options:
        return None
    thing = pick(rng, options)
    x, y = thing.centre
    answer = f"{'top' if y < middle else 'bottom'} {'left' if x < middle else 'right'}"
    return Question("position", f"where is the {thing.colour} {thing.kind}?", answer, [thing.box])


_MAKERS = dict(zip(TASKS, (_colour, _shape, _size, _read, _find, _relation, _exist, _count, _position), strict=True))


def ask(rng: np.random.Generator, scene: Scene, task: str) -> Question | None:
    """Make a question of a task about a scene; None where the scene does not allow one without doubt.

    Parameters
    ----------
    rng
    scene
    task
        One of `TASKS`.
    """
    if task not in _MAKERS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    return _MAKERS[task](rng, scene)


def evidence_tokens(question: Question, grid: int = 14, size: int = 224) -> np.ndarray:
    """Which visual tokens lie under the evidence boxes.

    A token counts where a box covers at least a tenth of its patch; each box has at least one token.

    Returns
    -------
    numpy.ndarray
        bool (grid * grid,), row by row.
    """
    return overlap(question.boxes, grid, size) >= 0.1


def overlap(boxes: Iterable[tuple[int, int, int, int]], grid: int = 14, size: int = 224) -> np.ndarray:
    """Share of each patch covered by the box that covers it most, float (grid * grid,); at least 0.1 once a box."""
    patch = size / grid
    edges = np.arange(grid) * patch
    out = np.zeros((grid, grid))
    for x0, y0, x1, y1 in boxes:
        wide = np.clip(np.minimum(x1, edges + patch) - np.maximum(x0, edges), 0, None)
        high = np.clip(np.minimum(y1, edges + patch) - np.maximum(y0, edges), 0, None)
        cover = np.outer(high, wide) / patch**2
        best = np.unravel_index(cover.argmax(), cover.shape)
        cover[best] = max(cover[best], 0.1)
        out = np.maximum(out, cover)
    return out.reshape(-1)


HARD_STYLE = Style(fewest=14, most=24, sizes=(0.55, 0.3, 0.15), hidden=0.5, colours=5, kinds=5)
HARD_TASKS = ("colour", "shape", "relation", "read-number", "relation-sign", "exist-size", "count-kind")


def _read_number(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = [t for t in _pairs(scene) if t.text]
    if not signs:
        return None
    sign = pick(rng, signs)
    return Question("read-number", f"which number is on the {sign.colour} sign?", sign.text, [sign.box])


def _relation_sign(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = alone([t for t in scene.objects if t.text], lambda t: t.text)
    shapes = [t for t in _pairs(scene) if t.size]
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
    rng
    scene
    task
        One of `HARD_TASKS`.
    """
    if task not in HARD_TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(HARD_TASKS)}")
    return _HARD_MAKERS[task](rng, scene) if task in _HARD_MAKERS else ask(rng, scene, task)


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
