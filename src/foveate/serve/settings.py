"""What the operator decides: batching, limits, and what a request may ask for."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from foveate.errors import FoveateError
from foveate.pruners.budget import check_keep

MIB = 2**20
HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+")  # a name or an IPv6 address, as a URL's hostname is given
NUMERIC = socket.AI_PASSIVE | socket.AI_NUMERICHOST


class ServeError(FoveateError, ValueError):
    """A setting of the server makes no sense, or something that it needs is not here."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a server.

    Attributes
    ----------
    served_name
        Name of the model for clients.
    method, keep, options
        How visual tokens are pruned: a method or the folder of a saved one, its budget (None: the method's own, or
        0.22), and its other options. The method `dense` prunes nothing.
    other_methods
        Methods that a request may ask for besides; `dense` is always one where budgets may be overridden.
    least_keep, most_keep
        Shares between which a request may choose its budget; both None: it may not.
    min_visual
        Prompts with fewer visual tokens run dense; None: worked out from this machine's rates.
    max_batch
        Sequences in one batch.
    window
        Seconds that the first request of a batch waits for others.
    join
        Whether requests join a batch that is decoding, rather than wait for its end.
    max_requests
        Requests that wait or run at once; others get status 429.
    max_per_key
        The same for each API key, or for each address where there are no keys.
    seconds
        From a request's arrival to the end of its answer.
    max_prompt, max_new_tokens, max_choices
        Tokens of a prompt, its visual tokens counted; of an answer; `n`.
    max_messages
        Messages of a request.
    max_body, max_image_bytes
        Bytes of a request, and of one image or video in it.
    max_images, max_pixels, max_frames
        Images and videos of a request; pixels of one image or frame; frames taken of one video.
    urls, url_hosts, url_seconds
        Whether http(s) URLs are fetched; from which hosts, all public ones where there are none; within how long.
    keys
        API keys; without any, every request is answered.

    Raises
    ------
    ServeError
        A number is not positive, or the two shares do not go together.
    BudgetError
        A share is none.
    """

    served_name: str
    method: str = "greedyprune"
    keep: float | int | None = None
    options: tuple[tuple[str, object], ...] = ()
    other_methods: tuple[str, ...] = ()
    least_keep: float | None = None
    most_keep: float | None = None
    min_visual: int | None = None
    max_batch: int = 8
    window: float = 0.005
    join: bool = False
    max_requests: int = 128
    max_per_key: int = 128
    seconds: float = 120.0
    max_prompt: int = 8192
    max_new_tokens: int = 1024
    max_choices: int = 4
    max_messages: int = 256
    max_body: int = 32 * MIB
    max_image_bytes: int = 16 * MIB
    max_images: int = 16
    max_pixels: int = 32_000_000
    max_frames: int = 32
    urls: bool = False
    url_hosts: tuple[str, ...] = ()
    url_seconds: float = 10.0
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("window", 0), ("min_visual", 0), ("seconds", 0.001), ("url_seconds", 0.001)):
            value = getattr(self, name)
            if value is not None and not least <= value < 1e6:
                raise ServeError(f"{name} must be a number of at least {least}, got {value!r}")
        for name, value in vars(self).items():
            if name.startswith("max_") and value < 1:
                raise ServeError(f"{name} must be at least 1, got {value!r}")
        if any(not key.isascii() or not key.strip() for key in self.keys):
            raise ServeError("an API key is empty, or not ASCII")
        low, high = self.least_keep, self.most_keep
        if (low is None) != (high is None):
            raise ServeError("least_keep and most_keep go together: shares between which a request may choose")
        if low is not None and high is not None and not float(check_keep(low)) <= float(check_keep(high)) <= 1:
            raise ServeError(f"least_keep and most_keep are shares, the second not smaller, got {low} and {high}")
        if self.url_hosts and not self.urls:
            raise ServeError("hosts of URLs are named, but URLs are not allowed")
        for one in self.url_hosts:
            if not HOST.fullmatch(one):
                raise ServeError(f"a host of URLs is a name such as example.org, got {one!r}")


def check_address(host: str, port: int) -> None:
    """Refuse an address on which nothing can listen, before a model is loaded; names are left to the server.

    Raises
    ------
    ServeError
        Another process listens there, the address is none of this machine, or the port is reserved.
    """
    numeric = "127.0.0.1" if host == "localhost" else host
    try:
        family, kind, _, _, address = socket.getaddrinfo(numeric, port, type=socket.SOCK_STREAM, flags=NUMERIC)[0]
    except (OSError, UnicodeError, ValueError):
        return  # a name
    try:
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise ServeError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Return the API keys in a file, one a line, and in the variable FOVEATE_API_KEYS, separated by commas.

    Raises
    ------
    ServeError
        The file cannot be read, or has none.
    """
    found = [key.strip() for key in os.environ.get("FOVEATE_API_KEYS", "").split(",")]
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError):
            raise ServeError(f"cannot read the file of API keys {file}") from None
        if not any(lines):
            raise ServeError(f"the file of API keys {file} has none")
        found += lines
    return tuple(key for key in found if key)
