"""Bytes of strangers: raster images alone, counted before they are decoded."""

from __future__ import annotations

import contextlib
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.serve.conftest import data_uri, turn, uri

pytest.importorskip("pydantic")

from foveate.serve.errors import ApiError
from foveate.serve.media import FORMATS, decode_image, decode_video, from_data_uri
from foveate.serve.settings import Settings

SETTINGS = Settings(served_name="x", max_pixels=10_000, max_frames=4)


def picture(width: int = 20, height: int = 10, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def film(frames: int) -> bytes:
    colours = [Image.new("RGB", (8, 8), (20 * at % 256, at // 12, 0)) for at in range(frames)]
    return encoded(colours[0], "GIF", save_all=True, append_images=colours[1:], duration=50)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_raster_images_are_read(kind, mode):
    if (kind, mode) in [("JPEG", "RGBA"), ("JPEG", "P")]:
        pytest.skip("JPEG has no such mode")
    found = decode_image(encoded(picture(mode=mode), kind), SETTINGS)
    assert (found.mode, found.size) == ("RGB", (20, 10))


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge, and holds nothing of that."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WRONG = {
    "nothing": (b"", "no format"),
    "text": (b"not an image", "no format"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', "no format"),
    "pdf": (b"%PDF-1.7\n1 0 obj\n", "no format"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no format"),
    "tiff": (encoded(picture(), "TIFF"), "no format"),
    "icon": (encoded(picture(), "ICO"), "no format"),
    "truncated": (encoded(picture(90, 90), "PNG")[:200], "broken or truncated"),
    "truncated jpeg": (encoded(picture(90, 90), "JPEG")[:700], "broken or truncated"),
    "too many pixels": (encoded(picture(101, 100), "PNG"), "10000 are allowed"),
    "bomb": (bomb(60_000, 60_000), "pixels"),
    "larger bomb": (bomb(2**31 - 1, 2**31 - 1), "pixels"),
    "no pixels": (bomb(0, 5), "image"),
}


@pytest.mark.parametrize("name", WRONG)
def test_others_are_refused_before_they_are_decoded(name, monkeypatch):
    data, message = WRONG[name]
    if "pixels" in message or "allowed" in message:
        monkeypatch.setattr(Image.Image, "load", lambda *a: pytest.fail("decoded"))
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *a: pytest.fail("decoded"))
    with pytest.raises(ApiError, match=message) as error:
        decode_image(data, SETTINGS)
    assert error.value.status == 400


@pytest.mark.parametrize(
    "text",
    [
        "data:,x",
        "data:image/png,x",
        "data:image/png;base64,§",
        "data:image/png;base64,abc",
        "data:" + ";x=y" * 999,
        "data:image/png;base64,====",
        "data:;charset=x;base64",
    ],
)
def test_a_data_uri_is_read_strictly(text):
    with pytest.raises(ApiError, match="base64"):
        from_data_uri(text, 1000)


def test_bytes_are_counted_before_they_are_decoded(monkeypatch):
    assert from_data_uri(data_uri(bytes(999)), 999) == bytes(999)
    with pytest.raises(ApiError, match="more than 999 bytes"):
        from_data_uri(data_uri(bytes(1000)), 999)
    monkeypatch.setattr("base64.b64decode", lambda *a, **k: pytest.fail("decoded"))
    with pytest.raises(ApiError, match="more than 999 bytes"):
        from_data_uri(data_uri(bytes(2000)), 999)


def test_frames_of_a_video():
    red = [frame.getpixel((0, 0))[0] for frame in decode_video(film(10), SETTINGS)]
    assert [round(value / 20) for value in red] == [0, 3, 6, 9]
    assert len(decode_video(film(3), SETTINGS)) == 3
    for data in (encoded(picture(), "PNG"), film(401)):
        with pytest.raises(ApiError, match="2 to 400 frames"):
            decode_video(data, SETTINGS)


def test_over_the_wire(client):
    for name in ("svg", "bomb", "truncated"):
        with pytest.raises(Exception, match="image") as error:
            client.chat.completions.create(model="tiny", messages=[turn("x", data_uri(WRONG[name][0]))])
        assert error.value.status_code == 400
    video = {"type": "video_url", "video_url": {"url": data_uri(film(4), "gif")}}
    with pytest.raises(Exception, match="takes no videos"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [video]}])
    for url in (
        "file:///etc/passwd",
        "/etc/passwd",
        "ftp://x/y",
        "http://127.0.0.1/x.png",
        "https://example.org/x.png",
    ):
        with pytest.raises(Exception, match="URL") as error:
            client.chat.completions.create(model="tiny", messages=[turn("x", url)])
        assert error.value.status_code == 400
    assert uri(picture())


@pytest.mark.slow
def test_ten_thousand_fuzzed_images():
    """Bytes changed, cut out, doubled and put in: an image or one clean refusal, never another error."""
    rng = np.random.default_rng(0)
    seeds = [
        encoded(picture(40, 30, mode), kind) for kind in ("PNG", "WEBP", "GIF", "BMP") for mode in ("RGB", "RGBA", "P")
    ]
    seeds += [encoded(picture(40, 30, mode), "JPEG", quality=60) for mode in ("RGB", "L", "CMYK")]
    seeds += [encoded(picture(40, 30), "JPEG", progressive=True), film(6)]
    read = 0
    for number in range(10_000):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(int(rng.integers(1, 8))):
            at, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 16))
            match int(rng.integers(4)):
                case 0:
                    data[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
                case 1:
                    del data[at : at + length]
                case 2:
                    data[at:at] = data[at : at + length]
                case 3 if at < len(data):
                    data[at] ^= 1 << int(rng.integers(8))
        for decode in (decode_image, decode_video):
            with contextlib.suppress(ApiError):
                decode(bytes(data), SETTINGS)
                read += 1
    assert 1000 < read < 20_000
