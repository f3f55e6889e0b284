"""An image means what it shows: depth, transparency, rotation and mode are kept, or refused in one line."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from foveate.learn.btp.samples import read_image
from foveate.learn.data.sample import GroundedSample
from foveate.measure.images import ImageError, as_rgb, open_image

RAMP = np.linspace(0, 255, 12).round().astype(np.uint8).reshape(3, 4)


def reopened(image: Image.Image, form: str) -> Image.Image:
    file = io.BytesIO()
    image.save(file, form)
    return Image.open(io.BytesIO(file.getvalue()))


DEEP = {
    "16 bits, PNG": lambda: reopened(Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG"),
    "16 bits, TIFF": lambda: reopened(Image.fromarray(RAMP.astype(np.uint16) * 257), "TIFF"),
    "32 bits of 16": lambda: Image.fromarray(RAMP.astype(np.int32) * 257),
    "32 bits of 8": lambda: Image.fromarray(RAMP.astype(np.int32)),
    "fractions": lambda: Image.fromarray((RAMP / 255).astype(np.float32)),
    "fractions to 255": lambda: reopened(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "grey": lambda: reopened(Image.fromarray(RAMP), "PNG"),
}


@pytest.mark.parametrize("name", list(DEEP))
def test_grey_values_keep_their_range(name):
    image = as_rgb(DEEP[name]())
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.repeat(RAMP[..., None], 3, 2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 10, 10, 255))
    made = image.convert("LA").convert(mode) if mode == "LA" else image
    if mode == "P":
        made = reopened(image.quantize(4), "PNG")
    pixels = np.asarray(as_rgb(made))
    assert (pixels[0, 0] == 255).all()
    assert (pixels[0, 1] < 20).all()


def test_half_transparent_pixels_are_mixed_with_white():
    assert as_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_modes(mode):
    assert as_rgb(Image.new(mode, (3, 2))).size == (3, 2)


def test_rotation_of_a_deep_image(tmp_path):
    image = Image.fromarray(RAMP.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert open_image(str(tmp_path / "a.png")).size == (3, 4)


@pytest.mark.parametrize("values", [[[-1.0, 5.0]], [[0.0, 300.0]], [[float("nan"), 1.0]]])
def test_other_ranges_are_refused_in_one_line(tmp_path, values):
    Image.fromarray(np.array(values, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match="grey values from .* bring them to 0 to 255") as caught:
        open_image(str(tmp_path / "a.tiff"))
    assert "\n" not in str(caught.value)


def test_one_function_wherever_an_image_is_opened(tmp_path):
    DEEP["16 bits, PNG"]().save(tmp_path / "a.png")
    expected = np.asarray(as_rgb(DEEP["grey"]()))
    sample = GroundedSample("what?", "this", tmp_path / "a.png")
    opened = [open_image(str(tmp_path / "a.png")), read_image(tmp_path / "a.png"), sample.image()]
    assert all(np.array_equal(np.asarray(image), expected) for image in opened)
