"""Rendered scenes: objects scattered, in rows, or signs with arrows from one to the next.

The background is cluttered and photograph-like. Signs lie on the grid of patches to within a pixel or two, so each of
their characters is one visual token; shapes lie anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from foveate.tiny.drawing import ARROWS, CONSONANTS, PALETTE, PATCH, VOWELS, paint_shape, paint_sign
from foveate.tiny.textures import background
from foveate.tiny.vocabulary import COLOURS, SHAPES

SIZE = 256  # side in pixels
GRID = SIZE // PATCH
TOKENS = GRID**2
ROWS = ("top", "middle", "bottom")
LAYOUTS = ("scattered", "rows", "trail")
# Entropy words that keep the streams apart: no seed of one is one of another.
TRAINING_STREAM, POOL_CHECK_STREAM, HELD_OUT_STREAM, GROUNDED_STREAM = 211, 223, 227, 229
HARD_HELD_OUT_STREAM, HARD_GROUNDED_STREAM, PAIR_STREAM = 233, 239, 241
CLIP_STREAM, LARGE_STREAM, MANY_STREAM = 251, 257, 263

_NAMES = tuple(COLOURS)
# Wider apart than patches are, so that a token can show its object's size.
_SIDES = {"small": (17, 20), "medium": (28, 33), "large": (43, 48)}
_STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_CELL = 4  # patches between the signs of a trail

Box = tuple[int, int, int, int]


@dataclass
class Thing:
    """One object; `size` is empty for signs, `text` (1-6 digits, or 3-6 letters) and `arrow` for shapes.

    `row` is "top", "middle" or "bottom" where the scene has rows.
    """

    kind: str
    colour: str
    size: str
    text: str
    box: Box
    """x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""
    arrow: str = ""
    row: str = ""

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box: x, y in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def glyphs(self) -> tuple[str, ...]:
        """The characters of a sign from left to right, its arrow last."""
        return (*self.text, *([self.arrow] if self.arrow else []))

    def glyph_box(self, index: int) -> Box:
        """Where a character of a sign lies."""
        x0, y0 = self.box[0] + 1 + PATCH * index, self.box[1] + 1
        return x0, y0, x0 + PATCH, y0 + PATCH


@dataclass
class Scene:
    """A picture and what is in it."""

    image: np.ndarray
    """uint8 (side, side, 3); side is 256 in the suites."""
    objects: list[Thing]

    @property
    def side(self) -> int:
        """Of the picture, in pixels."""
        return int(self.image.shape[0])

    def pil(self) -> Image.Image:
        """The picture as a Pillow image."""
        return Image.fromarray(self.image)


@dataclass(frozen=True)
class Style:
    """How scenes are drawn; the defaults are those that the embedded model was trained on.

    Parameters
    ----------
    fewest, most
        Bounds on the number of objects asked for; a scene without room has fewer. `fewest` is for scattered objects.
    clutter
        Fewest and most things in the background that no question asks about.
    hidden
        Chance that something thin passes in front of a shape.
    layout
        One of `LAYOUTS`; drawn anew for each scene by default.
    sizes
        Chances of a small, medium and large shape among scattered ones; by default they depend on how many there are.
    colours, kinds
        How many colours and shapes scattered objects draw from, chosen anew per scene. Fewer make more objects alike.
    tries
        How often a place is looked for.
    side
        Of the picture, in pixels; a multiple of a patch's 16, at most 384.
    """

    fewest: int = 1
    most: int = 14
    clutter: tuple[int, int] = (4, 18)
    hidden: float = 0.2
    layout: str | None = None
    sizes: tuple[float, float, float] | None = None
    colours: int | None = None
    kinds: int | None = None
    tries: int = 200
    side: int = SIZE


TRAINED = Style()


def random_text(rng: np.random.Generator, form: str) -> str:
    """What a sign says: a `short` number (1-2 digits), a `long` one (3-6), or a `word` that no one knows."""
    if form == "word":
        first = int(rng.integers(2))  # consonants and vowels take turns
        letters = [(VOWELS if (first + i) % 2 else CONSONANTS) for i in range(int(rng.integers(3, 7)))]
        return "".join(kind[rng.integers(len(kind))] for kind in letters)
    length = int(rng.integers(1, 3) if form == "short" else rng.integers(3, 7))
    return "".join(str(d) for d in rng.integers(0, 10, length))


def _some(rng: np.random.Generator, names: tuple[str, ...], number: int | None) -> tuple[str, ...]:
    """`number` of the names; all of them, and nothing drawn, for None."""
    return names if number is None else tuple(names[i] for i in rng.choice(len(names), number, replace=False))


def touch(a: tuple[int, int, int, int], b: tuple[int, int, int, int], gap: int = 3) -> bool:
    """Whether two boxes overlap or come closer than `gap` pixels."""
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def sign_box(rng: np.random.Generator, length: int, column: int, row: int, side: int) -> Box:
    """The box of a plate whose first character lies in a patch; a pixel or so off the grid."""
    x = min(max(0, PATCH * column - 1 + int(rng.integers(-1, 2))), side - PATCH * length - 2)
    y = min(max(0, PATCH * row - 1 + int(rng.integers(-1, 2))), side - PATCH - 2)
    return x, y, x + PATCH * length + 2, y + PATCH + 2


def light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A picture (side, side, 3) as uint8, with light and grain over everything."""
    side = len(image)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    shine = rng.uniform(0.82, 1.08) + rng.uniform(-0.14, 0.14) * ramp[:, None] + rng.uniform(-0.14, 0.14) * ramp
    grain = rng.integers(-6, 7, (side, side, 1), dtype=np.int8) if rng.random() < 0.5 else 0
    return np.clip(image * shine[..., None] + grain, 0, 255).astype(np.uint8)


def blend(rng: np.random.Generator, region: np.ndarray, thing: Thing, hidden: float) -> None:
    """Paint a thing into `region`, float32: the part of the picture under its box."""
    fill = np.clip(np.asarray(COLOURS[thing.colour]) + rng.normal(0, 9, 3), 0, 255).astype(np.float32)
    if thing.kind == "sign":
        paint_sign(rng, region, thing, fill)
    else:
        paint_shape(rng, region, thing, fill, hidden)


class _Painter:
    """A background and the objects put on it so far."""

    def __init__(self, rng: np.random.Generator, style: Style):
        self.rng, self.hidden, self.side = rng, style.hidden, style.side
        self.image = background(rng, style.side, PALETTE, style.clutter)
        self.objects: list[Thing] = []

    def put(self, thing: Thing) -> bool:
        """Paint a thing unless it would touch another."""
        if any(touch(thing.box, other.box) for other in self.objects):
            return False
        x0, y0, x1, y1 = thing.box
        blend(self.rng, self.image[y0:y1, x0:x1], thing, self.hidden)
        self.objects.append(thing)
        return True

    def finish(self) -> Scene:
        """Light and grain over everything."""
        return Scene(light(self.rng, self.image), self.objects)


def side_of(rng: np.random.Generator, chances: tuple[float, float, float]) -> tuple[str, int]:
    """A size and a side in pixels, with the chances of small, medium and large."""
    size = ("small", "medium", "large")[int(rng.choice(3, p=chances))]
    return size, int(rng.integers(_SIDES[size][0], _SIDES[size][1] + 1))


def _form(rng: np.random.Generator) -> str:
    return ("short", "long", "word")[int(rng.choice(3, p=(0.3, 0.37, 0.33)))]


def _scattered(rng: np.random.Generator, paint: _Painter, style: Style) -> None:
    grid, count = style.side // PATCH, int(rng.integers(style.fewest, style.most + 1))
    sign_share = float(rng.choice([0.15, 0.35, 0.55]))
    # Few colours or few shapes in a scene make groups to list.
    colours, shapes = _some(rng, _NAMES, style.colours), _some(rng, SHAPES, style.kinds)
    if style.colours is None and rng.random() < 0.5:
        colours = _some(rng, _NAMES, int(rng.integers(3, 6)))
    if style.kinds is None and rng.random() < 0.5:
        shapes = _some(rng, SHAPES, int(rng.integers(2, 5)))
    chances = style.sizes or ((0.42, 0.36, 0.22) if count > 8 else (0.36, 0.36, 0.28))
    for _ in range(style.tries):
        if len(paint.objects) == count:
            return
        colour = colours[rng.integers(len(colours))]
        if rng.random() < sign_share:
            text = random_text(rng, _form(rng))
            column, row = int(rng.integers(0, grid + 1 - len(text))), int(rng.integers(0, grid))
            paint.put(Thing("sign", colour, "", text, sign_box(rng, len(text), column, row, style.side)))
        else:
            size, side = side_of(rng, chances)
            x, y = (int(v) for v in rng.integers(1, style.side - side - 1, 2))
            kind = shapes[rng.integers(len(shapes))]
            paint.put(Thing(kind, colour, size, "", (x, y, x + side, y + side)))


def _rows(rng: np.random.Generator, paint: _Painter, style: Style) -> None:
    most = style.most
    names = ROWS if rng.random() < 0.6 else (ROWS[0], ROWS[2])
    height = style.side / len(names)
    for number, name in enumerate(names):
        if len(paint.objects) + 2 > most and number:
            return
        middle = height * (number + 0.5) + rng.uniform(-8, 8)
        count = int(rng.integers(2, min(5, max(2, most - len(paint.objects))) + 1))
        chances = (0.5, 0.35, 0.15) if count > 3 else (0.34, 0.36, 0.3)
        things: list[tuple[str, str, str, int]] = []
        for _ in range(count):
            if rng.random() < 0.16:
                text = random_text(rng, _form(rng) if count < 4 else "short")
                things.append(("sign", "", text, PATCH * len(text) + 2))
            else:
                size, side = side_of(rng, chances)
                things.append((SHAPES[rng.integers(len(SHAPES))], size, "", side))
        # A sign snaps to the grid, so it may move by half a patch.
        room = [w + 6 + (18 if kind == "sign" else 0) for kind, _, _, w in things]
        while sum(room) > style.side - 4:
            room.pop()
            things.pop()
        gaps = rng.dirichlet(np.ones(len(things) + 1)) * (style.side - 4 - sum(room))
        x = 2 + gaps[0]
        for (kind, size, text, width), wide, gap in zip(things, room, gaps[1:], strict=True):
            colour = _NAMES[rng.integers(len(_NAMES))]
            if kind == "sign":
                box = sign_box(rng, len(text), round((x + 12) / PATCH), round((middle - 8) / PATCH), style.side)
            else:
                left, top = round(x + 3), round(middle - width / 2 + rng.uniform(-5, 5))
                box = (left, top, left + width, top + width)
            paint.put(Thing(kind, colour, size, text, box, row=name))
            x += wide + gap


def _trail(rng: np.random.Generator, paint: _Painter, style: Style) -> None:
    most = style.most
    cells = style.side // PATCH // _CELL
    count = int(rng.integers(3, min(8, max(3, most)) + 1))
    # A walk without crossings, then more signs beside it; every arrow leads to a neighbour that is there.
    taken: dict[tuple[int, int], str] = {}
    here = (int(rng.integers(cells)), int(rng.integers(cells)))
    order = [here]
    while len(order) < count:
        free = [c for c in _neighbours(here, cells) if c not in order]
        if not free or (len(order) >= 4 and rng.random() < 0.3):
            around = [c for o in order for c in _neighbours(o, cells) if c not in order]
            here = around[int(rng.integers(len(around)))]
        else:
            here = free[int(rng.integers(len(free)))]
        order.append(here)
    colours = _some(rng, _NAMES, len(order))
    for number, cell in enumerate(order):
        ways = [a for a in ARROWS if _step(cell, a) in order]
        onward = [a for a in ways if number + 1 < len(order) and _step(cell, a) == order[number + 1]]
        taken[cell] = onward[0] if onward and rng.random() < 0.8 else ways[int(rng.integers(len(ways)))]
    for cell, colour in zip(order, colours, strict=True):
        text = random_text(rng, "short")
        column = _CELL * cell[1] + int(rng.integers(0, 3 - len(text)))
        row = _CELL * cell[0] + int(rng.integers(1, 3))
        box = sign_box(rng, len(text) + 1, column, row, style.side)
        paint.put(Thing("sign", colour, "", text, box, arrow=taken[cell]))
    for _ in range(int(rng.integers(0, 6)) if most > count else 0):
        cell = (int(rng.integers(cells)), int(rng.integers(cells)))
        size, side = side_of(rng, (0.4, 0.35, 0.25))
        if cell in taken:
            continue
        x, y = (PATCH * _CELL * c + int(rng.integers(1, PATCH * _CELL - side)) for c in (cell[1], cell[0]))
        colour, kind = _NAMES[rng.integers(len(_NAMES))], SHAPES[rng.integers(len(SHAPES))]
        paint.put(Thing(kind, colour, size, "", (x, y, x + side, y + side)))


def _step(cell: tuple[int, int], arrow: str) -> tuple[int, int]:
    return cell[0] + _STEPS[arrow][0], cell[1] + _STEPS[arrow][1]


def _neighbours(cell: tuple[int, int], cells: int) -> list[tuple[int, int]]:
    around = (_step(cell, arrow) for arrow in ARROWS)
    return [c for c in around if 0 <= c[0] < cells and 0 <= c[1] < cells]


_PLACERS = dict(zip(LAYOUTS, (_scattered, _rows, _trail), strict=True))


def make_scene(rng: np.random.Generator, style: Style = TRAINED, layout: str | None = None) -> Scene:
    """Render one scene.

    Parameters
    ----------
    rng
        The only source of chance.
    style
        How crowded, cluttered and alike things are.
    layout
        One of `LAYOUTS`; by default that of the style, or drawn.

    Raises
    ------
    ValueError
        There is no such layout.
    """
    layout = layout or style.layout
    if layout is None:
        layout = LAYOUTS[int(rng.choice(3, p=(0.45, 0.33, 0.22)))]
    if layout not in _PLACERS:
        raise ValueError(f"unknown layout {layout!r}; there are {', '.join(LAYOUTS)}")
    paint = _Painter(rng, style)
    _PLACERS[layout](rng, paint, style)
    return paint.finish()


def follow(objects: list[Thing], sign: Thing) -> Thing | None:
    """The sign that a sign's arrow leads to: the nearest with an arrow about that way; None where there is none."""
    if not sign.arrow:
        return None
    down, right = _STEPS[sign.arrow]
    x, y = sign.glyph_box(len(sign.text))[:2]
    best: tuple[float, Thing] | None = None
    for other in objects:
        if other is sign or not other.arrow:
            continue
        ox, oy = other.glyph_box(len(other.text))[:2]
        along, aside = (ox - x) * right + (oy - y) * down, abs((ox - x) * down) + abs((oy - y) * right)
        if along > 2 * PATCH and aside < 2.5 * PATCH and (best is None or along < best[0]):
            best = (along, other)
    return best[1] if best else None
