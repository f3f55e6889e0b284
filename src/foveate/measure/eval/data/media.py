"""Images and videos of a row: a path, a URL, a data URI, bytes, or what the datasets library stores."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from foveate.measure.eval.data.errors import RowError
from foveate.measure.eval.data.tables import missing
from foveate.measure.images import WEB, ImageError, as_rgb, decode_image, fetch, read_file

DATA = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w-]+=[^;,]*)*;base64,", re.IGNORECASE)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)


@dataclass(frozen=True)
class Media:
    """Where images and videos come from.

    Parameters
    ----------
    folder
        What paths start from.
    allow_urls
        Fetch what is named by a URL.
    downloads
        Folder for what was fetched, so that it is fetched once.
    frames
        Frames of a video that are shown, at even distances.
    """

    folder: Path
    allow_urls: bool = False
    downloads: Path | None = None
    frames: int = 8

    def image(self, source: Any, digest: Any = None) -> Image.Image:
        """Return an image in 8-bit RGB.

        Raises
        ------
        RowError
            There is none, or it cannot be read.
        """
        data, name = self._data(source)
        if digest is not None:
            digest.update(data)
        try:
            image = decode_image(data, name)
        except ImageError as error:
            raise RowError(str(error)) from error
        if not image.width or not image.height:
            raise RowError(f"{name} has no pixels")
        return image

    def video(self, source: Any, digest: Any = None) -> tuple[Image.Image, ...]:
        """Return frames of a video in 8-bit RGB; `source` is as of an image, or the images of its frames.

        Raises
        ------
        RowError
            There is none, or it cannot be read.
        """
        if isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray):
            if not source:
                raise RowError("the video has no frames")
            return tuple(self.image(source[at], digest) for at in _even(len(source), self.frames))
        data, name = self._data(source)
        if digest is not None:
            digest.update(data)
        return _frames(data, name, self.frames)

    def _data(self, source: Any) -> tuple[bytes, str]:
        """What a file holds, and what it is called in a message."""
        if isinstance(source, Mapping):
            held, path = source.get("bytes"), source.get("path")
            if held is None and not path:
                raise RowError(f"an image is a path or bytes, and this has neither: {_short(source)}")
            return self._data(path if held is None else held)
        if isinstance(source, bytes | bytearray):
            return bytes(source), f"an image of {len(source)} bytes"
        if not isinstance(source, str):
            raise RowError(f"an image is a path, a URL, a data URI or bytes, not {_short(source)}")
        try:
            if source[:5].lower() == "data:":
                return _from_uri(source), "the image of a data URI"
            if source.startswith(WEB):
                return self._fetched(source), source
            if SCHEME.match(source) and not (self.folder / source).exists():
                raise RowError(f"{_short(source)}: a URL of http or https, a data URI, or a path is wanted")
            return read_file(str(self.folder / source)), source
        except (ImageError, OSError) as error:
            raise RowError(str(error)) from error
        except ValueError as error:
            if isinstance(error, RowError):
                raise
            raise RowError(f"{_short(source)} is no path: {error}") from error

    def _fetched(self, url: str) -> bytes:
        if not self.allow_urls:
            raise RowError(f"{_short(url)} is fetched only with --allow-urls")
        if self.downloads is None:
            return fetch(url)
        there = self.downloads / hashlib.sha256(url.encode()).hexdigest()[:32]
        if not there.exists():
            data = fetch(url)
            self.downloads.mkdir(parents=True, exist_ok=True)
            new = there.with_suffix(".new")
            new.write_bytes(data)
            new.replace(there)
        return there.read_bytes()


def _from_uri(uri: str) -> bytes:
    head = DATA.match(uri[:256])
    if head is None:
        raise RowError(f"a data URI is 'data:image/png;base64,' and the data in base64, not {_short(uri)}")
    try:
        return base64.b64decode(uri[head.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise RowError(f"a data URI is no base64: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _even(number: int, wanted: int) -> list[int]:
    """Places at even distances, the first and the last among them."""
    taken = min(number, wanted)
    return [round(at * (number - 1) / max(taken - 1, 1)) for at in range(taken)]


def _frames(data: bytes, name: str, wanted: int) -> tuple[Image.Image, ...]:
    try:
        with Image.open(io.BytesIO(data)) as image:  # GIF, WebP, PNG
            places = set(_even(int(getattr(image, "n_frames", 1)), wanted))
            shown = enumerate(ImageSequence.Iterator(image))
            return tuple(as_rgb(frame.copy()) for at, frame in shown if at in places)
    except Image.UnidentifiedImageError:
        pass
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RowError(f"{name} is a broken or truncated video: {error}") from error
    try:
        import av
    except ImportError as error:
        raise missing(f"a video such as {name}") from error
    try:
        with av.open(io.BytesIO(data)) as file:
            number = sum(1 for _ in file.decode(video=0))
        places = set(_even(number, wanted))
        with av.open(io.BytesIO(data)) as file:
            shown = enumerate(file.decode(video=0))
            frames = tuple(as_rgb(frame.to_image()) for at, frame in shown if at in places)
    except (av.error.FFmpegError, IndexError, ValueError) as error:  # IndexError: a file of sound alone
        raise RowError(f"{name} is no video that can be read: {error}") from error
    if not frames:
        raise RowError(f"{name} has no frames")
    return frames
