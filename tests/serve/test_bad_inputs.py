"""Bad inputs over the wire, and the table of what each got in docs/serve.md.

`python -m tests.serve.test_bad_inputs` prints the table.
"""

from __future__ import annotations

import http.client
import json
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.serve.conftest import data_uri, running, turn, uri

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serve.md"
LIMITS = {
    "keep": 0.3,
    "least_keep": 0.1,
    "most_keep": 1.0,
    "keys": ("secret",),
    "max_images": 2,
    "max_body": 200_000,
    "max_pixels": 10_000,
    "max_image_bytes": 100_000,
    "max_new_tokens": 100,
}


def chat(*images: str, text: str = "how many stars ?", **more) -> bytes:
    return json.dumps({"model": "tiny", "messages": [turn(text, *images)], **more}).encode()


def png(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


SMALL = uri(Image.new("RGB", (8, 8)))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
CASES: dict[str, bytes] = {
    "no JSON": b"{",
    "JSON that is nested 100,000 times": b"[" * 100_000,
    "bytes that are not UTF-8": b'{"model": "\xff"}',
    "a body of 200,001 bytes": b" " * 200_001,
    "no messages": b'{"model": "tiny"}',
    "`temperature: NaN`": chat(temperature=0).replace(b'"temperature": 0', b'"temperature": NaN'),
    '`temperature: "hot"`': chat(temperature="hot"),
    "`n: 1e9`": chat(n=10**9),
    "`max_tokens: 101`": chat(max_tokens=101),
    "`logit_bias`": chat(logit_bias={"1": 5}),
    "another model": chat(model="gpt-4o"),
    "`keep: 0.05`, under the operator's limit": chat(foveate={"keep": 0.05}),
    "a method that the operator does not allow": chat(foveate={"method": "fastv"}),
    "the word that marks images": chat(text="what is <image> ?"),
    "half of a surrogate pair": chat(text="?").replace(b'"?"', b'"\\ud800"'),
    "4,000 words": chat(text="how " * 4000),
    "three images": chat(SMALL, SMALL, SMALL),
    "base64 that is none": chat("data:image/png;base64,***"),
    "an image of no bytes": chat(data_uri(b"")),
    "SVG": chat(data_uri(SVG, "svg+xml")),
    "SVG that calls itself PNG": chat(data_uri(SVG)),
    "a truncated PNG": chat(data_uri(png(8, 8)[:40])),
    "a PNG without its pixels": chat(data_uri(png(8, 8))),
    "a decompression bomb of 60,000 x 60,000": chat(data_uri(png(60_000, 60_000))),
    "an image of 100,001 bytes": chat(data_uri(bytes(100_001))),
    "`file:///etc/passwd`": chat("file:///etc/passwd"),
    "`http://169.254.169.254/`": chat("http://169.254.169.254/"),
}


def ask(port: int, body: bytes, path: str = "/v1/chat/completions", method: str = "POST", key: str = "secret"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        return answer.status, found["error"]["message"]
    finally:
        connection.close()


def rows(port: int) -> list[str]:
    """The lines of the table."""
    found = {name: ask(port, body) for name, body in CASES.items()}
    found["a wrong key"] = ask(port, chat(), key="guess")
    found["`DELETE`"] = ask(port, b"", method="DELETE")
    found["a path that is not there"] = ask(port, b"", path="/v1/embeddings")
    return [f"| {name} | {status} | {message} |" for name, (status, message) in found.items()]


def table(loaded, made: Callable = running) -> list[str]:
    with made(loaded, **LIMITS) as server:
        return rows(server.port)


def test_the_page_says_what_each_got(loaded):
    page = PAGE.read_text(encoding="utf-8").splitlines()
    lines = table(loaded)
    assert [line for line in lines if line not in page] == []
    assert all(" | 4" in line and "Traceback" not in line for line in lines)


if __name__ == "__main__":
    from foveate.measure.loading import load_model

    print("\n".join(["| input | status | message |", "|---|---:|---|", *table(load_model("tiny", "cpu"))]))
