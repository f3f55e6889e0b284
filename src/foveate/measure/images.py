"""Any image that Pillow opens, as 8-bit RGB: what foveate does with an image before a processor sees it."""

from __future__ import annotations

import io
import os
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.errors import FoveateError

TIMEOUT = 20  # seconds
LARGEST = 64 * 2**20  # bytes
WEB = ("http://", "https://")
WHITE = (255, 255, 255, 255)
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")


class ImageError(FoveateError, OSError):
    """An image that cannot be found or read."""


def open_image(source: str) -> Image.Image:
    """Return an image in 8-bit RGB; see `as_rgb`.

    Parameters
    ----------
    source
        A file, or a URL of http or https.

    Raises
    ------
    ImageError
        It is missing, out of reach, no image, or broken.
    """
    return decode_image(fetch(source) if source.startswith(WEB) else read_file(source), source)


def decode_image(data: bytes, name: str) -> Image.Image:
    """Return the image that an image file holds, in 8-bit RGB; see `as_rgb`.

    Parameters
    ----------
    data
        The file.
    name
        What it is called in an error.

    Raises
    ------
    ImageError
        It is no image, or broken.
    """
    try:
        return as_rgb(Image.open(io.BytesIO(data)))
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways to say that a file is broken
        raise ImageError(f"{name} is a broken or truncated image: {error}") from error


def read_file(source: str) -> bytes:
    """Return what an image file holds.

    Raises
    ------
    ImageError
        It is missing, or cannot be read.
    """
    path = os.path.expanduser(source)
    if not os.path.exists(path):  # False too for a name that no file can have, where Path.exists raises
        raise ImageError(f"no image file {source}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {source}: {error.strerror}") from error


def fetch(url: str) -> bytes:
    """Return what is at a URL of http or https.

    Raises
    ------
    ImageError
        It is out of reach, or too large.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "foveate"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            data: bytes = answer.read(LARGEST + 1)
    except urllib.error.HTTPError as error:
        raise ImageError(f"cannot fetch {url}: the server answered {error.code} {error.reason}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ImageError(f"cannot fetch {url}: {reason}; check the address and the network, or give a file") from error
    if len(data) > LARGEST:
        raise ImageError(f"{url} holds more than {LARGEST // 2**20} MiB")
    return data


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
