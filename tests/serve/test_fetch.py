"""URLs of strangers: nothing but public addresses, whatever a name, a redirect or a later look-up says."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time

import pytest

pytest.importorskip("pydantic")

from foveate.serve import fetch as module
from foveate.serve.errors import ApiError
from foveate.serve.fetch import fetch, is_public
from foveate.serve.settings import Settings

OPEN = Settings(served_name="x", urls=True, url_seconds=1.0, max_image_bytes=1000)

HIDDEN = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "100::1",
]  # fmt: skip


@pytest.mark.parametrize("address", HIDDEN)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111"])
def test_addresses_that_are(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/", "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/",
        "http://0/", "http://[::1]/", "http://[::ffff:7f00:1]/", "http://169.254.169.254/latest/meta-data/",
        "http://8.8.8.8:22/", "http://8.8.8.8:8080/", "ftp://8.8.8.8/", "file:///etc/passwd", "gopher://8.8.8.8/",
        "http://user:word@8.8.8.8/", "http://8.8.8.8@127.0.0.1/", "http:///x", "http://", "http://[::1", "http://a:b/",
        "http://8.8.8.8/\r\nHost: y", "http://exämple.org/", "http://8.8.8.8:0x50/",
    ],
)  # fmt: skip
def test_urls_that_are_refused(url, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("connected"))
    with pytest.raises(ApiError) as error:
        fetch(url, OPEN)
    assert error.value.status == 400


def test_off_by_default(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("resolved"))
    with pytest.raises(ApiError, match="fetches no URLs"):
        fetch("http://8.8.8.8/x.png", Settings(served_name="x"))
    hosts = Settings(served_name="x", urls=True, url_hosts=("images.example",))
    with pytest.raises(ApiError, match="not fetch from that host"):
        fetch("http://example.org/x.png", hosts)


class Site(http.server.BaseHTTPRequestHandler):
    """What a server of a stranger does."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.2)
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * (5000 if self.path == "/large" else 50))

    def log_message(self, *args):
        pass


@pytest.fixture
def site(monkeypatch):
    """A site that stands for the public address 93.184.216.34, port 80; connections elsewhere fail the test."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked, server.names = [], {}
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connect, resolve = socket.create_connection, socket.getaddrinfo

    def to_site(address, *args, **kwargs):
        assert address == ("93.184.216.34", 80), address
        return connect(server.server_address, *args, **kwargs)

    def by_names(host, port, *args, **kwargs):
        if host in server.names:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in server.names[host]()]
        return resolve(host, port, *args, **kwargs)

    monkeypatch.setattr(module.socket, "create_connection", to_site)
    monkeypatch.setattr(module.socket, "getaddrinfo", by_names)
    server.names["site.example"] = lambda: ["93.184.216.34"]
    yield server
    server.shutdown()
    server.server_close()


def test_what_a_public_site_has(site):
    assert fetch("http://site.example/x.png?y=1", OPEN) == b"x" * 50
    assert site.asked == [("/x.png?y=1", "site.example")]


def test_redirects_are_checked_one_by_one(site):
    assert fetch("http://site.example/to//x.png", OPEN) == b"x" * 50
    for place in ("http://127.0.0.1/x", "http://169.254.169.254/x", "file:///etc/passwd", "http://site.example:22/"):
        with pytest.raises(ApiError):
            fetch(f"http://site.example/to/{place}", OPEN)
    with pytest.raises(ApiError, match="too often"):
        fetch("http://site.example" + "/to/" * 5, OPEN)


def test_a_name_that_resolves_to_another_address_later(site):
    """It is looked up once, and what was checked is what is connected to."""
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    site.names["rebind.example"] = lambda: next(answers)
    assert fetch("http://rebind.example/x", OPEN) == b"x" * 50
    with pytest.raises(ApiError, match="not public"):
        fetch("http://rebind.example/x", OPEN)
    site.names["both.example"] = lambda: ["93.184.216.34", "10.0.0.1"]
    with pytest.raises(ApiError, match="not public"):
        fetch("http://both.example/x", OPEN)


def test_bounds(site):
    with pytest.raises(ApiError, match="more than 1000 bytes"):
        fetch("http://site.example/large", OPEN)
    with pytest.raises(ApiError, match="answered 404"):
        fetch("http://site.example/missing", OPEN)
    begin = time.monotonic()
    with pytest.raises(ApiError, match="too long"):
        fetch("http://site.example/drip", OPEN)
    assert time.monotonic() - begin < 3
