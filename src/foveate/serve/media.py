"""Images and videos of a request: raster data only, looked at before they are decoded."""

from __future__ import annotations

import base64
import binascii
import io
import itertools
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageSequence

from foveate.measure.images import as_rgb
from foveate.serve.errors import ApiError, bad
from foveate.serve.settings import Settings

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
FILMS = ("GIF", "WEBP", "PNG")  # of several frames
CONTAINERS = (("mp4", re.compile(rb".{4}ftyp", re.DOTALL)), ("matroska", re.compile(rb"\x1aE\xdf\xa3")))
CODECS = ("h264", "hevc", "mpeg4", "vp8", "vp9", "av1")
LONGEST = 100  # frames of a video for each that is taken, and pixels of all its frames for each that one may have
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
    """Return frames of an animation, MP4 or WebM in 8-bit RGB: all, or `max_frames` at even distances.

    Raises
    ------
    ApiError
        As `decode_image`; it has fewer than two frames, or over 100 for each that is taken.
    """
    for container, head in CONTAINERS:
        if head.match(data):
            return _decode_container(data, container, settings)
    with _opened(data, FILMS, settings) as image:
        wanted = _places(int(getattr(image, "n_frames", 1)), settings)
        return [as_rgb(frame.copy()) for frame in _taken(ImageSequence.Iterator(image), wanted)]


def _decode_container(data: bytes, container: str, settings: Settings) -> list[Image.Image]:
    """Return frames of a video of one kind of container and of known codecs: FFmpeg guesses neither."""
    try:
        import av
    except ImportError:
        raise bad(
            f"this server decodes no {container}, only {', '.join(FILMS)}", "messages", "invalid_video"
        ) from None
    broken = bad("a video is broken or truncated", "messages", "invalid_video")
    try:
        with av.open(io.BytesIO(data), "r", format=container) as file:
            stream = file.streams.video[0]
            if stream.codec_context.name not in CODECS:
                raise bad(f"a video is of no codec that is taken: {', '.join(CODECS)}", "messages", "invalid_video")
            most = LONGEST * settings.max_frames
            number = sum(packet.size > 0 for packet in itertools.islice(file.demux(stream), most + 1))
        wanted = _places(number, settings)
        with av.open(io.BytesIO(data), "r", format=container) as file:
            stream = file.streams.video[0]
            _check_pixels(stream.width, stream.height, settings, number)
            frames = [_image(frame, settings) for frame in _taken(file.decode(stream), wanted)]
    except av.error.FFmpegError:
        raise broken from None
    except BROKEN:
        raise broken from None
    if len(frames) != len(wanted):
        raise broken
    return frames


def _image(frame: Any, settings: Settings) -> Image.Image:
    _check_pixels(frame.width, frame.height, settings)  # it may change between frames
    return as_rgb(frame.to_image())


def _check_pixels(width: int, height: int, settings: Settings, frames: int = 1) -> None:
    pixels = width * height
    if pixels > settings.max_pixels or pixels * frames > LONGEST * settings.max_pixels:
        message = (
            f"a video has {frames} frames of {width} x {height} pixels; {settings.max_pixels} are allowed in one, and "
            f"{LONGEST} times as many in all"
        )
        raise bad(message, "messages", "image_too_large")


def _places(number: int, settings: Settings) -> set[int]:
    """Return which of the frames are taken."""
    most = LONGEST * settings.max_frames
    if not 2 <= number <= most:
        raise bad(f"a video has 2 to {most} frames", "messages", "invalid_video")
    taken = min(number, settings.max_frames)
    return {round(at * (number - 1) / max(taken - 1, 1)) for at in range(taken)}


def _taken(frames: Iterable[Any], places: set[int]) -> Iterator[Any]:
    last = max(places)
    for at, frame in enumerate(frames):
        if at in places:
            yield frame
        if at == last:
            return


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
