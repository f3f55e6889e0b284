"""Fetching a URL that a stranger named: public addresses only, connected to as they were checked, bounded in all."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from foveate.serve.errors import ApiError, bad
from foveate.serve.media import too_large
from foveate.serve.settings import Settings

PORTS = {"http": 80, "https": 443}
REDIRECTS = 3
CHUNK = 65536


def fetch(url: str, settings: Settings) -> bytes:
    """Return what a URL holds.

    Each place, also one that a redirect leads to, is resolved once, checked, and connected to at the address that was
    checked.

    Raises
    ------
    ApiError
        The URL is of another scheme, port or host than is allowed; leads to an address that is not public; does not
        answer in time or with what it should; or holds too much.
    """
    if not settings.urls:
        raise bad("this server fetches no URLs: send the image as a data URI", "messages", "urls_not_allowed")
    until = time.monotonic() + settings.url_seconds
    for _ in range(REDIRECTS + 1):
        parts = _checked(url, settings)
        address = public_address(parts.hostname or "", PORTS[parts.scheme])
        found = _get(parts, address, until, settings.max_image_bytes)
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise _failed("it redirects too often")


def _checked(url: str, settings: Settings) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise bad("a URL is not valid", "messages", "invalid_url") from None
    if parts.scheme not in PORTS or not host or port not in (None, PORTS[parts.scheme]):
        raise bad("a URL is http:// or https://, at the usual port", "messages", "invalid_url")
    if parts.username is not None or parts.password is not None or not url.isascii() or not url.isprintable():
        raise bad("a URL has no user name or password, and ASCII characters only", "messages", "invalid_url")
    if settings.url_hosts and host.lower() not in settings.url_hosts:
        raise bad("this server does not fetch from that host", "messages", "urls_not_allowed")
    return parts


def public_address(host: str, port: int) -> str:
    """Return an address of a host; all of its addresses must be public.

    Raises
    ------
    ApiError
        It has none, or one that is private, link-local, loopback, reserved, multicast, or wraps another.
    """
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise _failed("its host has no address") from None
    for address in found:
        if not is_public(address):
            raise bad("a URL leads to an address that is not public", "messages", "urls_not_allowed")
    return sorted(found, key=lambda address: (":" in address, address))[0]


NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Say whether an address is one of the open internet, written plainly."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # with a zone
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and (
        parsed.ipv4_mapped or parsed.sixtofour or parsed.teredo or parsed in NAT64 or parsed.is_site_local
    ):
        return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved and not parsed.is_unspecified


class _Connection(http.client.HTTPSConnection):
    """Connects to the address that was checked, whatever its host's name resolves to by now."""

    def __init__(self, parts: SplitResult, address: str, seconds: float) -> None:
        super().__init__(parts.hostname or "", PORTS[parts.scheme], timeout=seconds)
        self.default_port = PORTS[parts.scheme]
        self._raw: socket.socket | None = None  # `sock` is gone as soon as the answer begins
        self._address, self._secure, self._host_name = address, parts.scheme == "https", parts.hostname

    def connect(self) -> None:
        self._raw = self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            context = ssl.create_default_context()
            self._raw = self.sock = context.wrap_socket(self.sock, server_hostname=self._host_name)

    def cut(self) -> None:
        """End it, from another thread."""
        if self._raw is not None:
            with contextlib.suppress(OSError):
                self._raw.shutdown(socket.SHUT_RDWR)


def _get(parts: SplitResult, address: str, until: float, most: int) -> bytes | str:
    """Return the data, or where else it is."""
    left = until - time.monotonic()
    if left <= 0:
        raise _failed("it takes too long")
    connection = _Connection(parts, address, left)
    timer = threading.Timer(left, connection.cut)  # a server may send one byte after the other, for ever
    timer.daemon = True
    timer.start()
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(
            "GET", target, headers={"User-Agent": "foveate", "Accept": "image/*", "Connection": "close"}
        )
        answer = connection.getresponse()
        if answer.status in (301, 302, 303, 307, 308):
            return answer.getheader("Location") or ""
        if answer.status != 200:
            raise _failed(f"its server answered {answer.status}")
        data = bytearray()
        while chunk := answer.read(min(CHUNK, most + 1 - len(data))):
            data += chunk
            if len(data) > most:
                raise too_large(most)
        if time.monotonic() >= until:
            raise _failed("it takes too long")
        return bytes(data)
    except (OSError, http.client.HTTPException, ValueError):
        late = time.monotonic() >= until
        raise _failed("it takes too long" if late else "its server does not answer as it should") from None
    finally:
        timer.cancel()
        connection.close()


def _failed(why: str) -> ApiError:
    return bad(f"a URL could not be fetched: {why}", "messages", "url_failed")
