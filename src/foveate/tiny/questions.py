"""Short and long questions about a scene to read, each with its answer and the boxes that hold the evidence.

Nine tasks have answers of a word or two. Eight have long ones, that look at another place for each step: every such
step has boxes of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from foveate.tiny.drawing import PATCH
from foveate.tiny.scenes import (
    GRID,
    HELD_OUT_STREAM,
    ROWS,
    TRAINED,
    Box,
    Scene,
    Style,
    Thing,
    follow,
    make_scene,
)
from foveate.tiny.vocabulary import COLOURS, KINDS, PLURALS, pieces

SHORT_TASKS = ("colour", "shape", "size", "read", "find", "relation", "exist", "count", "position")
LONG_TASKS = ("number", "spell", "colours", "shapes", "each", "row", "compare", "follow")
TASKS = (*SHORT_TASKS, *LONG_TASKS)
_MARGIN = 12  # pixels between "left" and "right" of something
_FAR = 80  # pixels between two things that are compared
_HOPS = {2: "two", 3: "three"}


@dataclass
class Step:
    """One step of a long answer: which words of it (`pieces`, from `first` up to `last`), and their evidence."""

    first: int
    last: int
    boxes: list[Box]


@dataclass
class Question:
    """One question about one scene.

    `boxes` (x0, y0, x1, y1 in pixels) hold all that the answer needs. Where the answer says that something is
    absent, they hold what could be mistaken for it: for "is there a ...?" answered "no" the objects of that colour or
    that kind; for a count of 0 nothing. Either can be empty. `steps` is empty for short answers.
    """

    task: str
    text: str
    answer: str
    boxes: list[Box]
    steps: list[Step] = field(default_factory=list)


def alone(things: Iterable[Thing], key: Callable[[Thing], Hashable]) -> list[Thing]:
    """The things whose `key` no other thing shares."""
    groups: dict[Hashable, list[Thing]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return [group[0] for group in groups.values() if len(group) == 1]


def pick(rng: np.random.Generator, options: list) -> object:
    """One of the options, drawn evenly."""
    return options[int(rng.integers(len(options)))]


def direction(first: Thing, second: Thing) -> str | None:
    """Where the first lies from the second; None where they are too close or the direction is not clear."""
    dx, dy = (a - b for a, b in zip(first.centre, second.centre, strict=True))
    if max(abs(dx), abs(dy)) < 2 * _MARGIN or max(abs(dx), abs(dy)) < 1.35 * min(abs(dx), abs(dy)):
        return None
    return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")


def article(word: str) -> str:
    """The word with the indefinite article that it wants."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def listed(task: str, text: str, parts: list[str], boxes: list[list[Box]], joint: str = ", ") -> Question:
    """A question whose answer is a list, with one step for each part; a separator belongs to the part before it."""
    steps, first = [], 0
    for number, (_part, own) in enumerate(zip(parts, boxes, strict=True)):
        last = len(pieces(joint.join(parts[: number + 1]) + (joint if number + 1 < len(parts) else "")))
        steps.append(Step(first, last, own))
        first = last
    return Question(task, text, joint.join(parts), list(dict.fromkeys(b for own in boxes for b in own)), steps)


def named_pairs(scene: Scene) -> list[Thing]:
    """Things that colour and kind name without doubt."""
    return alone(scene.objects, lambda t: (t.colour, t.kind))


def from_left(things: Iterable[Thing]) -> list[Thing] | None:
    """From left to right; None where two are as good as one above the other."""
    out = sorted(things, key=lambda t: t.centre[0])
    clear = all(b.centre[0] - a.centre[0] >= _MARGIN for a, b in itertools.pairwise(out))
    return out if clear else None


def quadrant(thing: Thing, side: int) -> str | None:
    """The quarter of the picture that a thing lies in; None where it is near its middle lines."""
    x, y = thing.centre
    middle = side / 2
    if min(abs(x - middle), abs(y - middle)) <= _MARGIN:
        return None
    return f"{'top' if y < middle else 'bottom'} {'left' if x < middle else 'right'}"


def _colour(rng: np.random.Generator, scene: Scene) -> Question | None:
    named = [(t, t.kind) for t in alone(scene.objects, lambda t: t.kind) if t.size]
    named += [(t, f"{t.size} {t.kind}") for t in alone(scene.objects, lambda t: (t.kind, t.size)) if t.size]
    if not named:
        return None
    thing, name = pick(rng, named)
    return Question("colour", f"what colour is the {name}?", thing.colour, [thing.box])


def _shape(rng: np.random.Generator, scene: Scene) -> Question | None:
    named = [(t, t.colour) for t in alone(scene.objects, lambda t: t.colour) if t.size]
    named += [(t, f"{t.size} {t.colour}") for t in alone(scene.objects, lambda t: (t.colour, t.size)) if t.size]
    if not named:
        return None
    thing, name = pick(rng, named)
    return Question("shape", f"what shape is the {name} object?", thing.kind, [thing.box])


def _size(rng: np.random.Generator, scene: Scene) -> Question | None:
    options = [t for t in named_pairs(scene) if t.size]
    if not options:
        return None
    size = pick(rng, sorted({t.size for t in options}))  # every answer about equally often
    thing = pick(rng, [t for t in options if t.size == size])
    return Question("size", f"what size is the {thing.colour} {thing.kind}?", thing.size, [thing.box])


def _signs(scene: Scene, form: str) -> list[Thing]:
    """Signs that their colour names: with a `short` or a `long` number, or a `word`."""
    fits = {
        "short": lambda text: text.isdigit() and len(text) < 3,
        "long": lambda text: text.isdigit() and len(text) > 2,
        "word": str.isalpha,
    }[form]
    return [t for t in named_pairs(scene) if t.text and fits(t.text)]


def _read(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = _signs(scene, "short")
    if not signs:
        return None
    sign = pick(rng, signs)
    return Question("read", f"what does the {sign.colour} sign say?", " ".join(sign.text), [sign.box])


def _find(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = list(alone((t for t in scene.objects if t.text), lambda t: t.text))
    signs = [t for t in signs if t.text.isdigit() and len(t.text) < 4]
    if not signs:
        return None
    sign = pick(rng, signs)
    return Question("find", f"what colour is the sign with {sign.text}?", sign.colour, [sign.box])


def _relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    options = named_pairs(scene)
    for _ in range(8 if len(options) > 1 else 0):
        first, second = (options[i] for i in rng.choice(len(options), 2, replace=False))
        answer = direction(first, second)
        if answer is not None:
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
        return Question("exist", f"is there {article(colour)} {kind}?", "yes", boxes)
    # Hard negatives: the colour is there and the kind is there, but not in one object.
    crossed = [(c, k) for c in sorted({c for c, _ in present}) for k in sorted({k for _, k in present})]
    absent = [pair for pair in crossed if pair not in present]
    if not absent or rng.random() < 0.3:
        absent = [(c, k) for c in COLOURS for k in KINDS if (c, k) not in present]
    colour, kind = pick(rng, absent)
    boxes = [t.box for t in scene.objects if t.colour == colour or t.kind == kind]
    return Question("exist", f"is there {article(colour)} {kind}?", "no", boxes)


def _count(rng: np.random.Generator, scene: Scene) -> Question | None:
    groups = [(PLURALS[k], [t for t in scene.objects if t.kind == k]) for k in KINDS]
    groups += [(f"{c} objects", [t for t in scene.objects if t.colour == c]) for c in COLOURS]
    groups = [(name, members) for name, members in groups if len(members) <= 9]
    count = pick(rng, sorted({len(members) for _, members in groups}))  # small counts must not dominate
    name, members = pick(rng, [group for group in groups if len(group[1]) == count])
    return Question("count", f"how many {name} are there?", str(count), [t.box for t in members])


def _position(rng: np.random.Generator, scene: Scene) -> Question | None:
    options = [(t, quadrant(t, scene.side)) for t in named_pairs(scene)]
    options = [(t, place) for t, place in options if place]
    if not options:
        return None
    thing, place = pick(rng, options)
    return Question("position", f"where is the {thing.colour} {thing.kind}?", place, [thing.box])


def characters(task: str, text: str, sign: Thing) -> Question:
    """A question whose answer is what a sign says, one step for each character."""
    boxes = [sign.glyph_box(i) for i in range(len(sign.text))]
    steps = [Step(i, i + 1, [box]) for i, box in enumerate(boxes)]
    return Question(task, text, " ".join(sign.text), [sign.box], steps)


def _number(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = _signs(scene, "long")
    if not signs:
        return None
    sign = pick(rng, signs)
    return characters("number", f"read the number on the {sign.colour} sign digit by digit.", sign)


def _spell(rng: np.random.Generator, scene: Scene) -> Question | None:
    signs = _signs(scene, "word")
    if not signs:
        return None
    sign = pick(rng, signs)
    return characters("spell", f"spell the word on the {sign.colour} sign.", sign)


def _groups(
    scene: Scene,
    key: Callable[[Thing], Hashable],
    most: int,
    things: Callable[[Thing], bool] = lambda t: True,
) -> list[tuple[Hashable, list[Thing]]]:
    """Groups of 2 to `most` things from left to right that share `key`."""
    groups: dict[Hashable, list[Thing]] = {}
    for thing in scene.objects:
        if things(thing):
            groups.setdefault(key(thing), []).append(thing)
    ordered = [(name, from_left(group)) for name, group in groups.items() if 2 <= len(group) <= most]
    return [(name, group) for name, group in ordered if group]


def _in_rows(scene: Scene) -> list[tuple[str, list[Thing]]]:
    rows = [(f"in the {row} row", [t for t in scene.objects if t.row == row]) for row in ROWS]
    ordered = [(name, from_left(group)) for name, group in rows if 2 <= len(group) <= 5]
    return [(name, group) for name, group in ordered if group]


def _colours(rng: np.random.Generator, scene: Scene) -> Question | None:
    options = [(f"of the {PLURALS[str(kind)]}", group) for kind, group in _groups(scene, lambda t: t.kind, 5)]
    options += _in_rows(scene)
    if not options:
        return None
    name, group = pick(rng, options)
    text = f"list the colours {name} from left to right."
    return listed("colours", text, [t.colour for t in group], [[t.box] for t in group])


def _shapes(rng: np.random.Generator, scene: Scene) -> Question | None:
    options = [(f"of the {colour} objects", group) for colour, group in _groups(scene, lambda t: t.colour, 5)]
    options += _in_rows(scene)
    if not options:
        return None
    name, group = pick(rng, options)
    text = f"list the shapes {name} from left to right."
    return listed("shapes", text, [t.kind for t in group], [[t.box] for t in group])


def _each(rng: np.random.Generator, scene: Scene) -> Question | None:
    options = [
        (kind, group)
        for kind, group in _groups(scene, lambda t: t.kind, 4)
        if all(quadrant(t, scene.side) for t in group) and len({t.colour for t in group}) == len(group)
    ]
    if not options:
        return None
    kind, group = pick(rng, options)
    parts = [f"{t.colour} {quadrant(t, scene.side)}" for t in group]
    return listed("each", f"where is each {kind}?", parts, [[t.box] for t in group])


def _row(rng: np.random.Generator, scene: Scene) -> Question | None:
    options = _in_rows(scene)
    if not options:
        return None
    name, group = pick(rng, options)
    parts = [f"{article(t.colour)} {t.kind}" for t in group]
    out = listed("row", f"what is {name}?", parts, [[t.box] for t in group])
    # The last joint is "and": one word as the comma is, so the steps stay.
    out.answer = ", ".join(parts[:-1]) + " and " + parts[-1]
    return out


def _compare(rng: np.random.Generator, scene: Scene) -> Question | None:
    options = [t for t in named_pairs(scene) if t.size]
    sizes = ("small", "medium", "large")
    for _ in range(8 if len(options) > 1 else 0):
        first, second = (options[i] for i in rng.choice(len(options), 2, replace=False))
        dx, dy = (a - b for a, b in zip(first.centre, second.centre, strict=True))
        if max(abs(dx), abs(dy)) < _FAR or min(abs(dx), abs(dy)) < _MARGIN:
            continue
        larger = sizes.index(first.size) - sizes.index(second.size)
        size = "larger" if larger > 0 else "smaller" if larger < 0 else "as large"
        height, side = ("higher" if dy < 0 else "lower"), ("left" if dx < 0 else "right")
        text = f"compare the {first.colour} {first.kind} with the {second.colour} {second.kind}."
        both, length = [first.box, second.box], len(size.split())
        steps = [Step(0, length + 1, both), Step(length + 1, length + 3, both), Step(length + 3, length + 5, both)]
        return Question("compare", text, f"{size}, {height} and further {side}", both, steps)
    return None


def _follow(rng: np.random.Generator, scene: Scene) -> Question | None:
    starts = [t for t in alone((t for t in scene.objects if t.text), lambda t: t.colour) if t.arrow]
    walks = []
    for start in starts:
        walk = [start]
        while len(walk) < 4 and (onward := follow(scene.objects, walk[-1])):
            walk.append(onward)
        walks += [walk[: hops + 1] for hops in _HOPS if len(walk) > hops]
    if not walks:
        return None
    walk = pick(rng, walks)
    text = f"follow {_HOPS[len(walk) - 1]} arrows from the {walk[0].colour} sign."
    boxes = [[a.box, b.box] for a, b in itertools.pairwise(walk)]
    return listed("follow", text, [t.colour for t in walk[1:]], boxes, ", then ")


_MAKERS: dict[str, Callable[[np.random.Generator, Scene], Question | None]] = {
    "colour": _colour,
    "shape": _shape,
    "size": _size,
    "read": _read,
    "find": _find,
    "relation": _relation,
    "exist": _exist,
    "count": _count,
    "position": _position,
    "number": _number,
    "spell": _spell,
    "colours": _colours,
    "shapes": _shapes,
    "each": _each,
    "row": _row,
    "compare": _compare,
    "follow": _follow,
}


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


Shown = TypeVar("Shown")  # what a question is about: a scene, a clip, a large image


def held_out(n: int, seed: int = 0, style: Style = TRAINED) -> Iterator[tuple[Scene, Question]]:
    """Yield `n` held-out items, the tasks in turn, every item with a scene of its own.

    Parameters
    ----------
    n
        Number of items.
    seed
        Another seed gives other scenes; all of them differ from the training scenes.
    style
        How the scenes are drawn.

    Yields
    ------
    tuple of Scene and Question
    """
    return items(n, seed, HELD_OUT_STREAM, TASKS, partial(make_scene, style=style), ask)


def items(
    n: int,
    seed: int,
    stream: int,
    tasks: tuple[str, ...],
    make: Callable[[np.random.Generator], Shown],
    asked: Callable[[np.random.Generator, Shown, str], Question | None],
) -> Iterator[tuple[Shown, Question]]:
    """Yield `n` scenes, or what else `make` draws, of a stream with a question each, the tasks in turn."""
    for index in range(n):
        rng = np.random.default_rng([stream, seed, index])
        while True:
            shown = make(rng)
            question = asked(rng, shown, tasks[index % len(tasks)])
            if question is not None:
                yield shown, question
                break


def cover(boxes: Iterable[Box], grid: int = GRID, rows: int | None = None) -> np.ndarray:
    """Share of each patch covered by the box that covers it most, float (rows * grid,); at least 0.1 once a box.

    `rows` is `grid` by default; several images stand one above the other.
    """
    across, down = np.arange(grid) * PATCH, np.arange(rows or grid) * PATCH
    out = np.zeros((len(down), grid))
    for x0, y0, x1, y1 in boxes:
        wide = np.clip(np.minimum(x1, across + PATCH) - np.maximum(x0, across), 0, None)
        high = np.clip(np.minimum(y1, down + PATCH) - np.maximum(y0, down), 0, None)
        covered = np.outer(high, wide) / PATCH**2
        best = np.unravel_index(covered.argmax(), covered.shape)
        covered[best] = max(covered[best], 0.1)
        out = np.maximum(out, covered)
    return out.reshape(-1)


def evidence_tokens(question: Question, grid: int = GRID, rows: int | None = None) -> np.ndarray:
    """Which visual tokens lie under a question's evidence boxes, bool (rows * grid,), row by row.

    A token counts where a box covers at least a tenth of its patch; each box has at least one token.
    """
    return cover(question.boxes, grid, rows) >= 0.1
