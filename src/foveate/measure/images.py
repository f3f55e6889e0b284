"""Any image that Pillow opens, as 8-bit RGB: what foveate does with an image before a processor sees it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

WHITE = (255, 255, 255, 255)
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")


def as_rgb(image: Image.Image) -> Image.Image:
    """An image in 8-bit RGB, turned as its camera meant: by value range, on white where it is transparent.

    16-bit grey values are divided by 257, so that white stays white; Pillow's own conversion cuts them off at 255. So
    are whole numbers of 32 bits where one is over 255: older releases of Pillow open 16-bit files with them. Fractions
    from 0 to 1 are multiplied by 255. Of several frames the one that the image stands at is taken.

    Raises
    ------
    ValueError
        When the values fit no such range, or Pillow cannot convert the mode; the message names both.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in (*DEEP, "I", "F"):
        return Image.fromarray(_grey(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, WHITE), shown).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 (H, W)."""
    values = np.asarray(image)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if image.mode == "F":
        largest = 1.0 if high <= 1 else 255.0
    else:
        largest = 65535.0 if image.mode in DEEP or high > 255 else 255.0
    if not (low >= 0 and high <= largest):
        raise ValueError(f"grey values from {low:g} to {high:g} (mode {image.mode}): bring them to 0 to 255 before")
    return np.rint(values * (255.0 / largest)).astype(np.uint8)
