"""Clips of a few frames, in which objects move, enter and leave, and questions on order, direction and place.

The frames stand one above the other where boxes are concerned: y grows by `SIZE` from frame to frame, so that the
evidence of a question is a set of patches of all frames, in the order of the visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from foveate.tiny.drawing import PALETTE, PATCH
from foveate.tiny.questions import Question, characters, items, listed, pick, quadrant
from foveate.tiny.scenes import (
    CLIP_STREAM,
    GRID,
    SIZE,
    Box,
    Thing,
    blend,
    light,
    random_text,
    side_of,
    sign_box,
    touch,
)
from foveate.tiny.textures import background
from foveate.tiny.vocabulary import COLOURS, SHAPES

FRAMES = 8
CLIP_SHORT_TASKS = ("move", "moving", "place", "enter", "next", "read")
CLIP_LONG_TASKS = ("order", "number")
CLIP_TASKS = (*CLIP_SHORT_TASKS, *CLIP_LONG_TASKS)
_WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_ROLES = ("still", "moves", "enters", "leaves")
_CHANCES = (0.3, 0.4, 0.15, 0.15)  # what moves finds room less often
_COLOURS = tuple(COLOURS)
_BORDER = 112  # pixels around a frame, from which objects come: the longest sign has 98


@dataclass
class Track:
    """An object of a clip: `thing` in each frame, None where it is not to be seen.

    Boxes are cut at the frame's border and count from the top of the first frame.
    """

    things: list[Thing | None]
    whole: list[Box]
    """The boxes in each frame's own pixels, beyond its border too."""
    role: str
    way: str
    """left, right, up, down, or empty."""
    seed: int

    @property
    def name(self) -> str:
        """Colour and kind: no two objects of a clip share both."""
        return next(f"{thing.colour} {thing.kind}" for thing in self.things if thing)

    @property
    def change(self) -> int:
        """The first frame that shows it (of what enters), or the last one (of what leaves)."""
        seen = [number for number, thing in enumerate(self.things) if thing]
        return seen[0] if self.role == "enters" else seen[-1]

    def boxes(self, first: int = 0, last: int = FRAMES - 1) -> list[Box]:
        """Where it is to be seen in frames `first` to `last`."""
        return [thing.box for thing in self.things[max(0, first) : last + 1] if thing]

    def evidence(self) -> list[Box]:
        """The frames that show its entering or leaving, until or since it is whole."""
        return self.boxes(self.change, self.change + 2) if self.role == "enters" else self.boxes(self.change - 2)


@dataclass
class Clip:
    """Objects in frames; the frames are drawn when they are asked for."""

    tracks: list[Track]
    seed: int

    def frames(self) -> np.ndarray:
        """uint8 (frames, side, side, 3)."""
        rng = np.random.default_rng(self.seed)
        edge = ((_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0))
        empty = np.pad(background(rng, SIZE, PALETTE), edge, mode="edge")
        lamp, out = int(rng.integers(2**31)), []
        for number in range(FRAMES):
            image = empty.copy()
            for track in self.tracks:
                thing = track.things[number]
                if thing:
                    x0, y0, x1, y1 = (v + _BORDER for v in track.whole[number])
                    # The same draws in every frame: an object stays what it is.
                    blend(np.random.default_rng(track.seed), image[y0:y1, x0:x1], thing, 0.0)
            inside = image[_BORDER:-_BORDER, _BORDER:-_BORDER]
            out.append(light(np.random.default_rng(lamp), inside))
        return np.stack(out)

    def pils(self) -> tuple[Image.Image, ...]:
        """The frames as Pillow images."""
        return tuple(Image.fromarray(frame) for frame in self.frames())


def _cut(box: Box, frame: int) -> Box | None:
    """The part of a box within its frame, counted from the top of the first frame; None where nothing is left."""
    x0, y0, x1, y1 = (min(max(v, 0), SIZE) for v in box)
    return (x0, y0 + frame * SIZE, x1, y1 + frame * SIZE) if x0 < x1 and y0 < y1 else None


def _start(rng: np.random.Generator, role: str, way: str, box: Box) -> tuple[int, int]:
    """How far a box is to be moved so that it is where it belongs in frame 0; it enters and leaves by one patch."""
    dx, dy = _WAYS.get(way, (0, 0))
    if role in ("still", "moves"):
        return 0, 0
    frame, axis = int(rng.integers(1, FRAMES - 1)), 0 if dx else 1
    low, high, forward = box[axis], box[axis + 2], dx + dy > 0
    if role == "enters":  # one patch is inside in `frame`
        shift = PATCH - high if forward else SIZE - PATCH - low
    else:
        shift = SIZE - PATCH - low if forward else PATCH - high
    return (shift - frame * PATCH * dx, 0) if dx else (0, shift - frame * PATCH * dy)


def _track(rng: np.random.Generator, colour: str, kind: str, role: str) -> Track:
    """One object with its path, anywhere."""
    way = "" if role == "still" else pick(rng, list(_WAYS))
    size, texts = "", ["", ""]
    if kind == "sign":
        texts = [random_text(rng, "short" if rng.random() < 0.5 else "long")]
        texts.append("".join(str(d) for d in rng.integers(0, 10, len(texts[0]))))
        column, row = int(rng.integers(0, GRID + 1 - len(texts[0]))), int(rng.integers(0, GRID))
        box = sign_box(rng, len(texts[0]), column, row, SIZE)
    else:
        size, side = side_of(rng, (0.25, 0.4, 0.35))
        x, y = (int(v) for v in rng.integers(1, SIZE - side - 1, 2))
        box = (x, y, x + side, y + side)
    (sx, sy), (dx, dy) = _start(rng, role, way, box), _WAYS.get(way, (0, 0))
    turn = int(rng.integers(2, FRAMES - 1)) if role in ("still", "moves") else FRAMES  # when a sign's text changes
    whole, things = [], []
    for frame in range(FRAMES):
        ox, oy = sx + PATCH * frame * dx, sy + PATCH * frame * dy
        whole.append((box[0] + ox, box[1] + oy, box[2] + ox, box[3] + oy))
        part = _cut(whole[-1], frame)
        things.append(Thing(kind, colour, size, texts[int(frame >= turn)], part) if part else None)
    return Track(things, whole, role, way, int(rng.integers(2**31)))


def _fits(track: Track, others: list[Track]) -> bool:
    """Whether it stays within the frames as its role wants and never touches another."""
    if track.role in ("still", "moves"):
        inside = all(min(box) >= 0 and max(box) <= SIZE for box in (track.whole[0], track.whole[-1]))
    else:  # nothing changes in the same frame as another
        inside = all((o.role, o.change) != (track.role, track.change) for o in others)
    return inside and not any(touch(a, b) for o in others for a, b in zip(track.whole, o.whole, strict=True))


def make_clip(rng: np.random.Generator) -> Clip:
    """Draw one clip of 3 to 6 objects, some of which often enter, or leave; the frames are not drawn yet."""
    count, sign_share = int(rng.integers(3, 7)), float(rng.choice([0.15, 0.5]))
    theme, alike = pick(rng, ["enters", "leaves", ""]), int(rng.integers(2, 4))
    tracks: list[Track] = []
    for _ in range(60):
        kind = "sign" if rng.random() < sign_share else SHAPES[rng.integers(len(SHAPES))]
        role = _ROLES[int(rng.choice(4, p=_CHANCES))]
        if theme and sum(track.role == theme for track in tracks) < alike:
            role = theme
        track = _track(rng, _COLOURS[rng.integers(len(_COLOURS))], kind, role)
        if all(track.name != other.name for other in tracks) and _fits(track, tracks):
            tracks.append(track)
        if len(tracks) == count:
            break
    return Clip(tracks, int(rng.integers(2**31)))


def _move(rng: np.random.Generator, clip: Clip) -> Question:
    way = pick(rng, sorted({track.way for track in clip.tracks}))  # every answer about equally often
    track = pick(rng, [track for track in clip.tracks if track.way == way])
    return Question("move", f"where does the {track.name} move?", way or "still", track.boxes())


def _moving(rng: np.random.Generator, clip: Clip) -> Question:
    count = sum(bool(track.way) for track in clip.tracks)
    return Question("moving", "how many objects move?", str(count), [b for t in clip.tracks for b in t.boxes()])


def _end(rng: np.random.Generator) -> tuple[int, str]:
    """The first or the last frame: its number and its name."""
    return (0, "in the first frame") if rng.random() < 0.5 else (FRAMES - 1, "in the last frame")


def _place(rng: np.random.Generator, clip: Clip) -> Question | None:
    frame, name = _end(rng)
    options = []
    for track in clip.tracks:
        thing = track.things[frame]
        where = _quarter(thing)
        if thing and where:
            moved = _quarter(track.things[FRAMES - 1 - frame]) not in (None, where)
            options += [(track, thing, where)] * (4 if moved else 1)  # the frame matters where it has moved
    if not options:
        return None
    track, thing, where = pick(rng, options)
    return Question("place", f"where is the {track.name} {name}?", where, [thing.box])


def _quarter(thing: Thing | None) -> str | None:
    """As `quadrant`, within its frame."""
    if thing is None:
        return None
    x0, y0, x1, y1 = thing.box
    top = y0 // SIZE * SIZE
    return quadrant(Thing(thing.kind, thing.colour, "", "", (x0, y0 - top, x1, y1 - top)), SIZE)


def _changes(rng: np.random.Generator, clip: Clip) -> tuple[str, list[Track]] | None:
    """ "enters" or "leaves", and at least two objects that do, by time."""
    groups = [(role, [t for t in clip.tracks if t.role == role]) for role in ("enters", "leaves")]
    groups = [(role, sorted(group, key=lambda t: t.change)) for role, group in groups if len(group) > 1]
    return pick(rng, groups) if groups else None


def _enter(rng: np.random.Generator, clip: Clip) -> Question | None:
    found = _changes(rng, clip)
    if found is None:
        return None
    role, group = found
    at, name = pick(rng, [(0, "first"), (-1, "last")])
    boxes = [box for track in group for box in track.evidence()]
    return Question("enter", f"which object {role} {name}?", group[at].name, boxes)


def _next(rng: np.random.Generator, clip: Clip) -> Question | None:
    found = _changes(rng, clip)
    if found is None:
        return None
    role, group = found
    at = int(rng.integers(len(group) - 1))
    asked, wanted, name = (at, at + 1, "after") if rng.random() < 0.5 else (at + 1, at, "before")
    boxes = [box for track in group for box in track.evidence()]
    return Question("next", f"which object {role} {name} the {group[asked].name}?", group[wanted].name, boxes)


def _order(rng: np.random.Generator, clip: Clip) -> Question | None:
    found = _changes(rng, clip)
    if found is None:
        return None
    role, group = found
    return listed("order", f"list each object as it {role}.", [t.name for t in group], [t.evidence() for t in group])


def _sign(rng: np.random.Generator, clip: Clip, long: bool) -> tuple[Thing, str, str] | None:
    """A sign in the first or the last frame with a short or a long number, its name and that of the frame."""
    frame, name = _end(rng)
    signs = [(t.things[frame], t.name, name) for t in clip.tracks if t.role in ("still", "moves")]
    signs = [sign for sign in signs if sign[0] and sign[0].text and (len(sign[0].text) > 2) == long]
    return pick(rng, signs) if signs else None


def _read(rng: np.random.Generator, clip: Clip) -> Question | None:
    found = _sign(rng, clip, long=False)
    if found is None:
        return None
    sign, name, frame = found
    return Question("read", f"what does the {name} say {frame}?", " ".join(sign.text), [sign.box])


def _number(rng: np.random.Generator, clip: Clip) -> Question | None:
    found = _sign(rng, clip, long=True)
    if found is None:
        return None
    sign, name, frame = found
    return characters("number", f"read the number on the {name} {frame} digit by digit.", sign)


_MAKERS: dict[str, Callable[[np.random.Generator, Clip], Question | None]] = {
    "move": _move,
    "moving": _moving,
    "place": _place,
    "enter": _enter,
    "next": _next,
    "read": _read,
    "order": _order,
    "number": _number,
}


def ask_clip(rng: np.random.Generator, clip: Clip, task: str) -> Question | None:
    """Make a question of a task of `CLIP_TASKS` about a clip; None where the clip does not allow one."""
    return _MAKERS[task](rng, clip)


def held_out_clips(n: int, seed: int = 0) -> Iterator[tuple[Clip, Question]]:
    """Yield `n` held-out clips with a question each, the tasks in turn; boxes count from the first frame's top.

    Parameters
    ----------
    n, seed
        See `foveate.tiny.held_out`.

    Yields
    ------
    tuple of Clip and Question
    """
    return items(n, seed, CLIP_STREAM, CLIP_TASKS, make_clip, ask_clip)
