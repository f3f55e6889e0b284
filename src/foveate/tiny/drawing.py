"""How shapes and signs are drawn."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from foveate.tiny.vocabulary import COLOURS, DIGITS

if TYPE_CHECKING:
    from foveate.tiny.scenes import Thing

PALETTE = np.asarray(list(COLOURS.values()), dtype=np.float32)
PATCH = 16  # side in pixels
# Capital letters that no one takes for a digit; "a" is left out because it is an article too.
VOWELS, CONSONANTS = "euy", "fhklmnprtvwx"
SIGN_LETTERS = tuple(sorted(VOWELS + CONSONANTS))
ARROWS = ("up", "down", "left", "right")
GLYPHS = (*DIGITS, *SIGN_LETTERS, *ARROWS)
_OVERSAMPLE = 4
_GLYPH_HEIGHT = 12


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


@lru_cache(maxsize=256)
def _glyph(name: str) -> np.ndarray:
    """Coverage in 0-1 of a character or arrow, (12, width, 1), at most 13 pixels wide."""
    if name in ARROWS:
        big = Image.new("L", (48, 48), 0)
        ImageDraw.Draw(big).polygon([(24, 0), (46, 24), (31, 24), (31, 47), (17, 47), (17, 24), (2, 24)], fill=255)
        turn = {"up": 0, "left": 90, "down": 180, "right": 270}[name]
        small = big.rotate(turn).resize((_GLYPH_HEIGHT, _GLYPH_HEIGHT), Image.Resampling.BOX)
        return np.asarray(small, dtype=np.float32)[..., None] / 255
    font = ImageFont.load_default(size=64)
    image = Image.new("L", (112, 112), 0)
    ImageDraw.Draw(image).text((16, 8), name.upper(), font=font, fill=255, stroke_width=2)
    image = image.crop(image.getbbox())
    width = min(13, max(4, round(image.width * _GLYPH_HEIGHT / image.height)))
    return np.asarray(image.resize((width, _GLYPH_HEIGHT), Image.Resampling.BOX), dtype=np.float32)[..., None] / 255


def paint_shape(rng: np.random.Generator, region: np.ndarray, thing: Thing, fill: np.ndarray, hidden: float) -> None:
    """Blend a shape into `region`, the part of the picture under its box."""
    turn = int(rng.choice([-10, -5, 0, 5, 10])) if thing.kind in ("square", "triangle", "star", "cross") else 0
    whole, inside = _masks(thing.kind, region.shape[0], turn)
    rim = np.float32(28 if thing.colour == "white" or rng.random() < 0.7 else 240)
    region[:] = region * (1 - whole) + rim * whole
    region[:] = region * (1 - inside) + fill * inside
    if rng.random() < hidden:  # something thin passes in front
        side = region.shape[0]
        width, at = max(2, side // 9), int(rng.integers(side // 5, side - side // 5 - 2))
        colour = PALETTE[rng.integers(len(PALETTE))] * rng.uniform(0.3, 1.0)
        bar = region[:, at : at + width] if rng.random() < 0.5 else region[at : at + width]
        bar[:] = colour


def paint_sign(rng: np.random.Generator, region: np.ndarray, thing: Thing, fill: np.ndarray) -> None:
    """Paint a plate with its characters into `region`."""
    ink = np.float32(16 if thing.colour in ("yellow", "cyan", "white", "orange") else 248)
    region[:] = ink
    region[1:-1, 1:-1] = fill
    for index, name in enumerate(thing.glyphs):
        glyph = _glyph(name)
        x = 1 + PATCH * index + (PATCH - glyph.shape[1]) // 2 + int(rng.integers(-1, 2))
        y = 3 + int(rng.integers(-1, 2))
        part = region[y : y + _GLYPH_HEIGHT, max(x, 1) : max(x, 1) + glyph.shape[1]]
        part[:] = part * (1 - glyph) + ink * glyph
