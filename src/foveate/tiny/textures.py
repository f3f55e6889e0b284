"""Procedural grey textures and the backgrounds made of them: several coloured, textured regions, shadow, clutter."""

from __future__ import annotations

import colorsys
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ATLAS_SIZE = 384
# Letters that no one takes for a digit.
LETTERS = "ACEFHJKLMNPRTUVWXY"


def _unit(values: np.ndarray) -> np.ndarray:
    """Stretch to uint8 between the 2nd and 98th percentile."""
    low, high = np.percentile(values, (2, 98))
    return (np.clip((values - low) / (high - low + 1e-9), 0, 1) * 255).astype(np.uint8)


def _fractal(rng: np.random.Generator, slope: float) -> np.ndarray:
    """Noise whose amplitude spectrum falls with frequency to the power `slope`."""
    n = ATLAS_SIZE
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    frequency[0, 0] = 1
    phase = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
    return np.fft.irfft2(phase / frequency**slope, s=(n, n))


def _grid(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rotated, slightly warped pixel coordinates."""
    n = ATLAS_SIZE
    y, x = np.mgrid[0:n, 0:n].astype(np.float64)
    angle = rng.uniform(0, np.pi)
    warp = _fractal(rng, 2.2)
    warp = warp / warp.std() * rng.uniform(0, 6)
    return x * np.cos(angle) + y * np.sin(angle) + warp, -x * np.sin(angle) + y * np.cos(angle) + warp


def _drawn(rng: np.random.Generator, what: str) -> np.ndarray:
    """A carpet of random rectangles, ellipses, strokes or letters."""
    n = ATLAS_SIZE
    image = Image.new("L", (n, n), 128)
    pen = ImageDraw.Draw(image)
    reach = int(rng.integers(14, 50))
    for _ in range(24000 // reach):
        x, y = rng.integers(-20, n, 2)
        w, h = rng.integers(reach // 4, reach, 2)
        grey = int(rng.integers(0, 256))
        if what == "rectangles":
            pen.rectangle([x, y, x + w, y + h], fill=grey)
        elif what == "ellipses":
            pen.ellipse([x, y, x + w, y + h], fill=grey)
        elif what == "strokes":
            pen.line([x, y, x + w - reach // 2, y + h - reach // 2], fill=grey, width=int(rng.integers(1, 5)))
        else:
            font = ImageFont.load_default(size=int(rng.integers(10, 26)))
            pen.text((x, y), str(rng.choice(list(LETTERS))), font=font, fill=grey)
    return np.asarray(image, dtype=np.float64)


def _cells(rng: np.random.Generator) -> np.ndarray:
    """Voronoi cells, each of one grey."""
    n, count = ATLAS_SIZE, int(rng.integers(40, 160))
    seeds = rng.uniform(0, n, (count, 2))
    u, v = _grid(rng)
    nearest = np.full((n, n), np.inf)
    value = np.zeros((n, n))
    centre_u, centre_v = u[tuple(seeds.astype(int).T)], v[tuple(seeds.astype(int).T)]
    for grey, a, b in zip(rng.uniform(0, 255, count), centre_u, centre_v, strict=True):
        distance = (u - a) ** 2 + (v - b) ** 2
        closer = distance < nearest
        nearest[closer], value[closer] = distance[closer], grey
    return value


@lru_cache(maxsize=1)
def atlas() -> np.ndarray:
    """Grey textures, uint8 of shape (textures, 384, 384), the same in every process."""
    rng = np.random.default_rng(2026)
    out = [_fractal(rng, slope) for slope in (0.5, 0.9, 1.2, 1.5, 1.8, 2.2, 1.0, 1.4)]
    for _ in range(5):  # stripes and their relatives
        u, v = _grid(rng)
        period = rng.uniform(7, 34, 2)
        out.append(np.sin(2 * np.pi * u / period[0]))
        out.append(np.sign(np.sin(2 * np.pi * u / period[0]) * np.sin(2 * np.pi * v / period[1])))
        out.append((u / period[0]) % 1)
        out.append(np.hypot((u % period[0]) - period[0] / 2, (v % period[0]) - period[0] / 2) < period[0] / 3.2)
    for _ in range(4):
        u, v = _grid(rng)
        period = rng.uniform(9, 26)
        row = np.floor(v / period)
        out.append(((v % period) > 2) & (((u + row % 2 * period) % (2 * period)) > 2))  # bricks
        rings = np.hypot(u - rng.uniform(-400, 400), v - rng.uniform(-400, 400))
        out.append(np.sin(rings / rng.uniform(1.5, 5)) + 0.01 * _fractal(rng, 1.5))  # wood
        out.append(_cells(rng))
    for what in ("rectangles", "ellipses", "strokes", "letters") * 3:
        out.append(_drawn(rng, what))
    mixed = []
    for texture in out:  # nothing in a photograph is perfectly clean
        texture = np.asarray(texture, dtype=np.float64)
        noise = _fractal(rng, rng.uniform(0.6, 1.8))
        mixed.append(_unit(texture / (texture.std() + 1e-9) + rng.uniform(0.1, 0.6) * noise / noise.std()))
    return np.stack(mixed)


def random_colour(rng: np.random.Generator, named: np.ndarray) -> np.ndarray:
    """A background colour, float32 (3,): half the time close to one of the `named` object colours."""
    if rng.random() < 0.5:
        return np.clip(named[rng.integers(len(named))] * rng.uniform(0.45, 1.0) + rng.normal(0, 18, 3), 0, 255)
    hsv = rng.random(), rng.uniform(0.1, 0.9), rng.uniform(0.25, 0.95)
    return np.asarray(colorsys.hsv_to_rgb(*hsv)) * 255


def _regions(rng: np.random.Generator, size: int) -> np.ndarray:
    """Label map (size, size) that splits the image into 1-5 regions with straight or ragged borders."""
    count = int(rng.integers(1, 6))
    coarse = 56  # borders at a quarter of the resolution are sharp enough once enlarged
    y, x = np.mgrid[0:coarse, 0:coarse].astype(np.float32)
    noise = atlas()[rng.integers(0, 8)]
    a, b = rng.integers(0, ATLAS_SIZE - coarse, 2)
    ragged = (noise[a : a + coarse, b : b + coarse].astype(np.float32) - 128) * rng.choice([0.0, 0.02, 0.08])
    seeds = rng.uniform(0, coarse, (count, 2))
    stretch = rng.uniform(0.4, 2.5)
    distance = [np.hypot(x - sx, (y - sy) * stretch) + ragged * (i % 2) for i, (sx, sy) in enumerate(seeds)]
    label = np.argmin(np.stack(distance), 0).astype(np.uint8)
    return np.asarray(Image.fromarray(label).resize((size, size), Image.Resampling.NEAREST))


def background(
    rng: np.random.Generator, size: int, named: np.ndarray, clutter: tuple[int, int] = (4, 18)
) -> np.ndarray:
    """A textured background.

    Parameters
    ----------
    rng
    size
        Side in pixels, at most 384, that of the textures.
    named
        The object colours, (colours, 3) in 0-255; background and clutter borrow from them.
    clutter
        Fewest and most things drawn on it that no question asks about.

    Returns
    -------
    numpy.ndarray
        float32 (size, size, 3) in 0-255.
    """
    textures = atlas()
    label = _regions(rng, size)
    image = np.empty((size, size, 3), dtype=np.uint8)
    ramp = np.linspace(0, 1, 256)[:, None]
    for region in range(int(label.max()) + 1):
        texture = textures[rng.integers(len(textures))]
        if rng.random() < 0.5:
            texture = texture.T
        y, x = rng.integers(0, max(1, ATLAS_SIZE - size), 2)
        first = random_colour(rng, named)
        second = random_colour(rng, named) if rng.random() < 0.4 else first * rng.uniform(0.3, 1.5)
        contrast = rng.uniform(0.25, 1.0)
        table = np.clip(first + (second - first) * ramp * contrast, 0, 255).astype(np.uint8)
        inside = label == region
        image[inside] = table[texture[y : y + size, x : x + size][inside]]
    canvas = Image.fromarray(image)
    _clutter(rng, canvas, named, clutter)
    out = np.asarray(canvas, dtype=np.float32)
    if rng.random() < 0.5:  # a shadow with a soft or hard edge
        y, x = np.mgrid[0:size, 0:size].astype(np.float32)
        angle, edge = rng.uniform(0, 2 * np.pi), rng.choice([1.0, 12.0])
        side = x * np.cos(angle) + y * np.sin(angle) - rng.uniform(-0.5, 1.0) * size
        out = out * (1 - rng.uniform(0.2, 0.5) * np.clip(side / edge + 0.5, 0, 1))[..., None]
    return out


def _clutter(rng: np.random.Generator, canvas: Image.Image, named: np.ndarray, clutter: tuple[int, int]) -> None:
    """Draw shapes and letters that no question asks about, in the objects' colours, without an outline."""
    pen, size = ImageDraw.Draw(canvas), canvas.width
    for _ in range(int(rng.integers(clutter[0], clutter[1] + 1))):
        colour = named[rng.integers(len(named))] + rng.normal(0, 16, 3)
        fill = tuple(int(v) for v in np.clip(colour * rng.uniform(0.6, 1.05), 0, 255))
        x, y = rng.uniform(-10, size + 10, 2)
        what, reach = rng.integers(5), rng.uniform(6, 26)
        if what == 0:  # an irregular blob
            corners = int(rng.integers(5, 11))
            angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
            radii = reach * rng.uniform(0.35, 1, corners)
            points = zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)
            pen.polygon([(float(a), float(b)) for a, b in points], fill=fill)
        elif what == 1:
            dx, dy = rng.normal(0, 50, 2)
            pen.line([x, y, x + dx, y + dy], fill=fill, width=int(rng.integers(1, 7)))
        elif what == 2:
            start = rng.uniform(0, 360)
            box = [x - reach, y - reach, x + reach, y + reach]
            pen.chord(box, start, start + rng.uniform(70, 190), fill=fill)
        elif what == 3:
            start = rng.uniform(0, 360)
            pen.arc([x - reach, y - reach, x + reach, y + reach], start, start + 200, fill=fill, width=4)
        else:
            font = ImageFont.load_default(size=int(rng.integers(14, 30)))
            pen.text((x, y), LETTERS[rng.integers(len(LETTERS))], font=font, fill=fill)
