"""Images and videos of a request: raster data only, looked at before they are decoded."""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageSequence

from foveate.measure.images import as_rgb
from foveate.serve.errors import ApiError, bad
from foveate.serve.settings import Settings

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
FILMS = ("GIF", "WEBP", "PNG")  # of several frames
DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w-]+=[^;,]*)*);base64,", re.IGNORECASE)
# Pillow's ways to say that a file is broken
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def from_data_uri(uri: str, most: int) -> bytes:
    """Return what a base64 data URI holds.

    Raises
    ------
    ApiError
        It is none, or holds more than `most` bytes.
    """
    head = DATA.match(uri[:512])
    if head is None:
        raise bad("a data URI is 'data:image/png;base64,' and the data in base64", "messages", "invalid_image")
    if (len(uri) - head.end()) // 4 * 3 > most + 2:
        raise too_large(most)
    try:
        data = base64.b64decode(uri[head.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise bad("a data URI is not valid base64", "messages", "invalid_image") from None
    if len(data) > most:
        raise too_large(most)
    return data


def too_large(most: int) -> ApiError:
    """Return the error of an image or video of too many bytes."""
    return bad(f"an image or video has more than {most} bytes", "messages", "image_too_large")


def decode_image(data: bytes, settings: Settings) -> Image.Image:
    """Return an image in 8-bit RGB; of several frames the first.

    Raises
    ------
    ApiError
        It is of no format that is taken, broken, or has too many pixels, which is known before it is decoded.
    """
    with _opened(data, FORMATS, settings) as image:
        return as_rgb(image)


def decode_video(data: bytes, settings: Settings) -> list[Image.Image]:
    """Return frames of an animation in 8-bit RGB: all, or `max_frames` at even distances.

    Raises
    ------
    ApiError
        As `decode_image`; it has fewer than two frames, or over 100 for each that is taken.
    """
    with _opened(data, FILMS, settings) as image:
        number = int(getattr(image, "n_frames", 1))
        if not 2 <= number <= 100 * settings.max_frames:
            raise bad(f"a video has 2 to {100 * settings.max_frames} frames", "messages", "invalid_video")
        taken = min(number, settings.max_frames)
        wanted = {round(at * (number - 1) / max(taken - 1, 1)) for at in range(taken)}
        last = max(wanted)
        frames = []
        for at, frame in enumerate(ImageSequence.Iterator(image)):
            if at in wanted:
                frames.append(as_rgb(frame.copy()))
            if at == last:
                break
        return frames


@contextmanager
def _opened(data: bytes, formats: tuple[str, ...], settings: Settings) -> Iterator[Image.Image]:
    names = ", ".join(formats)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        if image.width * image.height > settings.max_pixels:
            raise bad(
                f"an image has {image.width} x {image.height} pixels; {settings.max_pixels} are allowed",
                "messages",
                "image_too_large",
            )
        yield image
    except ApiError:
        raise
    except Image.DecompressionBombError:
        raise bad(f"an image has over {settings.max_pixels} pixels", "messages", "image_too_large") from None
    except Image.UnidentifiedImageError:
        raise bad(
            f"an image or animation is of no format that is taken: {names}", "messages", "invalid_image"
        ) from None
    except BROKEN:
        raise bad("an image is broken or truncated", "messages", "invalid_image") from None
