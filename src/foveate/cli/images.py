"""An image from a file or a URL, or one line that says why not."""

import io
import os
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from foveate.errors import FoveateError

TIMEOUT = 20  # seconds
LARGEST = 64 * 2**20  # bytes


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
    from foveate.measure.images import as_rgb

    data = _fetch(source) if source.startswith(("http://", "https://")) else _read(source)
    try:
        image = Image.open(io.BytesIO(data))
        return as_rgb(image)
    except UnidentifiedImageError as error:
        raise ImageError(f"{source} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{source} is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways to say that a file is broken
        raise ImageError(f"{source} is a broken or truncated image: {error}") from error


def _read(source: str) -> bytes:
    path = os.path.expanduser(source)
    if not os.path.exists(path):  # False too for a name that no file can have, where Path.exists raises
        raise ImageError(f"no image file {source}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {source}: {error.strerror}") from error


def _fetch(url: str) -> bytes:
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
