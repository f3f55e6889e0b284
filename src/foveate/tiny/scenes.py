"""Rendered scenes: 1-14 outlined objects (shapes, numbered signs) before a cluttered, photograph-like background."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from foveate.tiny.textures import background
from foveate.tiny.vocabulary import COLOURS, SHAPES

SIZE = 224
_PALETTE = np.asarray(list(COLOURS.values()), dtype=np.float32)
_NAMES = tuple(COLOURS)
_SIDES = {"small": (15, 18), "medium": (25, 30), "large": (40, 47)}
_OVERSAMPLE = 4


@dataclass
class Thing:
    """One object of a scene; `size` is empty for signs, `text` (1-2 digits) is empty for shapes."""

    kind: str
    colour: str
    size: str
    text: str
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box: x, y in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Style:
    """How scenes are drawn; the defaults are those that the embedded model was trained on.

    Parameters
    ----------
    fewest, most
        Bounds on the number of objects asked for; a scene without room has fewer.
    sizes
        Chances of a small, medium and large shape; by default they depend on the number of objects.
    hidden
        Chance that something thin passes in front of a shape.
    clutter
        Fewest and most things in the background that no question asks about.
    colours, kinds
        How many colours and shapes a scene draws from, chosen anew per scene; all by default. Fewer make more objects
        alike.
    """

    fewest: int = 1
    most: int = 14
    sizes: tuple[float, float, float] | None = None
    hidden: float = 0.3
    clutter: tuple[int, int] = (4, 18)
    colours: int | None = None
    kinds: int | None = None


TRAINED = Style()


@dataclass
class Scene:
    """A picture and what is in it."""

    image: np.ndarray
    """uint8 (224, 224, 3)."""
    objects: list[Thing]

    def pil(self) -> Image.Image:
        """The picture as a Pillow image."""
        return Image.fromarray(self.image)


def _outline(kind: str, d: float) -> list[tuple[float, float]]:
    """Corners of a polygon shape in a square of side `d`."""
    if kind == "square":
        return [(0.05 * d, 0.05 * d), (0.95 * d, 0.05 * d), (0.95 * d, 0.95 * d), (0.05 * d, 0.95 * d)]
    if kind == "triangle":
        return [(d / 2, 0), (d, 0.95 * d), (0, 0.95 * d)]
    if kind == "diamond":
        return [(d / 2, 0), (0.9 * d, d / 2), (d / 2, d), (0.1 * d, d / 2)]
    if kind == "star":
        turns = -np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, d / 2, 0.22 * d)
        return [(d / 2 + r * np.cos(t), d / 2 + r * np.sin(t)) for r, t in zip(radii, turns, strict=True)]
    a, b = 0.31 * d, 0.69 * d  # cross
    return [(a, 0), (b, 0), (b, a), (d, a), (d, b), (b, b), (b, d), (a, d), (a, b), (0, b), (0, a), (a, a)]


@lru_cache(maxsize=4096)
def _masks(kind: str, side: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage in 0-1 of the whole shape and of its inside without the rim, each (side, side, 1)."""
    d = side * _OVERSAMPLE
    image = Image.new("L", (d, d), 0)
    pen = ImageDraw.Draw(image)
    if kind in ("circle", "ring"):
        pen.ellipse([0, 0, d - 1, d - 1], fill=255)
        if kind == "ring":
            pen.ellipse([0.29 * d, 0.29 * d, 0.71 * d, 0.71 * d], fill=0)
    else:
        pen.polygon([(float(x), float(y)) for x, y in _outline(kind, d - 1)], fill=255)
        if turn:
            image = image.rotate(turn, resample=Image.Resampling.BILINEAR)
    rim = 2 * round(_OVERSAMPLE * (1.0 if side < 20 else 1.6) / 2) + 1
    inside = image.filter(ImageFilter.MinFilter(rim))
    inside = inside.filter(ImageFilter.MinFilter(3)) if side >= 20 else inside
    small = [m.resize((side, side), Image.Resampling.BOX) for m in (image, inside)]
    return tuple(np.asarray(m, dtype=np.float32)[..., None] / 255 for m in small)


@lru_cache(maxsize=1024)
def _glyph(digit: str, height: int) -> np.ndarray:
    """Coverage in 0-1 of a digit `height` pixels tall, (height, width, 1)."""
    font = ImageFont.load_default(size=64)
    image = Image.new("L", (96, 96), 0)
    ImageDraw.Draw(image).text((16, 8), digit, font=font, fill=255, stroke_width=2)
    image = image.crop(image.getbbox())
    width = max(5, round(image.width * height / image.height))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.float32)[..., None] / 255


def _paint_shape(rng: np.random.Generator, region: np.ndarray, thing: Thing, fill: np.ndarray, hidden: float) -> None:
    """Blend a shape into `region`, the part of the picture under its box."""
    turn = int(rng.choice([-10, -5, 0, 5, 10])) if thing.kind in ("square", "triangle", "star", "cross") else 0
    whole, inside = _masks(thing.kind, region.shape[0], turn)
    rim = np.float32(28 if thing.colour == "white" or rng.random() < 0.7 else 240)
    region[:] = region * (1 - whole) + rim * whole
    region[:] = region * (1 - inside) + fill * inside
    if rng.random() < hidden:  # something thin passes in front
        side = region.shape[0]
        width, at = max(2, side // 9), int(rng.integers(side // 5, side - side // 5 - 2))
        colour = _PALETTE[rng.integers(len(_PALETTE))] * rng.uniform(0.3, 1.0)
        bar = region[:, at : at + width] if rng.random() < 0.5 else region[at : at + width]
        bar[:] = colour


def _paint_sign(rng: np.random.Generator, region: np.ndarray, thing: Thing, fill: np.ndarray) -> None:
    """Paint a plate with its number into `region`."""
    dark_ink = thing.colour in ("yellow", "cyan", "white", "orange")
    ink = np.float32(16 if dark_ink else 248)
    region[:] = ink
    region[2:-2, 2:-2] = fill
    height = region.shape[0] - 8
    glyphs = [_glyph(digit, height) for digit in thing.text]
    x = (region.shape[1] - sum(g.shape[1] for g in glyphs) - 2 * (len(glyphs) - 1)) // 2
    for glyph in glyphs:
        part = region[4 : 4 + height, x : x + glyph.shape[1]]
        part[:] = part * (1 - glyph) + ink * glyph
        x += glyph.shape[1] + 2


def _new_thing(
    rng: np.random.Generator, sign_share: float, chances: tuple[float, float, float], shapes: tuple[str, ...]
) -> tuple[str, str, str, int, int]:
    """Kind, size word, text, width and height of a random object."""
    if rng.random() < sign_share:
        text = str(rng.integers(0, 10)) if rng.random() < 0.4 else str(rng.integers(10, 100))
        height = int(rng.integers(19, 23))
        width = sum(_glyph(digit, height).shape[1] for digit in text) + 2 * (len(text) - 1) + 10
        return "sign", "", text, width + int(rng.integers(0, 4)), height + 8
    size = ("small", "medium", "large")[int(rng.choice(3, p=chances))]
    side = int(rng.integers(_SIDES[size][0], _SIDES[size][1] + 1))
    return shapes[rng.integers(len(shapes))], size, "", side, side


def _some(rng: np.random.Generator, names: tuple[str, ...], number: int | None) -> tuple[str, ...]:
    """`number` of the names; all of them, and nothing drawn, for None."""
    return names if number is None else tuple(names[i] for i in rng.choice(len(names), number, replace=False))


def _touch(a: tuple[int, int, int, int], b: tuple[int, int, int, int], gap: int = 3) -> bool:
    """Whether two boxes overlap or come closer than `gap` pixels."""
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def make_scene(
    rng: np.random.Generator, style: Style = TRAINED, sign_share: float | None = None, size: int = SIZE
) -> Scene:
    """Render one scene.

    Parameters
    ----------
    rng
        The only source of chance.
    style
        How crowded, cluttered and alike things are.
    sign_share
        Chance that an object is a sign; by default drawn anew per scene.
    size
        Side of the picture in pixels.

    Returns
    -------
    Scene
    """
    count = int(rng.integers(style.fewest, style.most + 1))
    if sign_share is None:
        sign_share = float(rng.choice([0.15, 0.3, 0.5]))
    colours, shapes = _some(rng, _NAMES, style.colours), _some(rng, SHAPES, style.kinds)
    chances = style.sizes or ((0.45, 0.35, 0.2) if count > 8 else (0.38, 0.34, 0.28))
    image = background(rng, size, _PALETTE, style.clutter)
    objects: list[Thing] = []
    for _ in range(300):
        if len(objects) == count:
            break
        kind, word, text, width, height = _new_thing(rng, sign_share, chances, shapes)
        x, y = int(rng.integers(1, size - width - 1)), int(rng.integers(1, size - height - 1))
        box = (x, y, x + width, y + height)
        if any(_touch(box, thing.box) for thing in objects):
            continue
        thing = Thing(kind, colours[rng.integers(len(colours))], word, text, box)
        fill = np.clip(np.asarray(COLOURS[thing.colour]) + rng.normal(0, 9, 3), 0, 255).astype(np.float32)
        region = image[y : y + height, x : x + width]
        if kind == "sign":
            _paint_sign(rng, region, thing, fill)
        else:
            _paint_shape(rng, region, thing, fill, style.hidden)
        objects.append(thing)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    light = rng.uniform(0.82, 1.08) + rng.uniform(-0.14, 0.14) * ramp[:, None] + rng.uniform(-0.14, 0.14) * ramp
    grain = rng.integers(-6, 7, (size, size, 1), dtype=np.int8) if rng.random() < 0.5 else 0
    return Scene(np.clip(image * light[..., None] + grain, 0, 255).astype(np.uint8), objects)
