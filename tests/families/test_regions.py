"""What part of an image each grid covers: against what the processors really cut, pad and shrink."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from foveate.families import FAMILIES, Grid, Run, find_runs
from tests.families.test_processing import needs_images
from tests.models.images import AROUND, IMAGE, LINE, PART, SIDE, WHOLE, crop_grids

SHAPES = [(64, 64), (40, 100), (60, 40), (90, 31), (200, 60), (37, 120), (640, 480)]  # (width, height) in pixels
PLAIN = dict(do_normalize=False, resample=Image.Resampling.BILINEAR)


def ramp(width: int, height: int) -> Image.Image:
    """Red says how far to the right a pixel lies, green how far down; blue that it is no padding."""
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray(np.round(255 * np.stack([across, down, np.ones_like(across)], -1)).astype(np.uint8))


def seen(pixels: np.ndarray) -> tuple[float, float, float, float]:
    """The region that (3, H, W) pixels of a ramp show: what red and green are in the middle, carried to the edges."""
    _, height, width = pixels.shape
    rows, columns = slice(height // 3, height - height // 3), slice(width // 3, width - width // 3)
    red, green = pixels[0, height // 2, columns], pixels[1, rows, width // 2]

    def ends(values, first, length):
        slope, start = np.polyfit(np.arange(first, first + len(values)) + 0.5, values, 1)
        return start, start + slope * length

    (x1, x2), (y1, y2) = ends(red, columns.start, width), ends(green, rows.start, height)
    return x1, y1, x2, y2


def settings(processor):
    return SimpleNamespace(image_processor=processor)


def near(region):
    return pytest.approx(region, abs=0.04)


@needs_images
@pytest.mark.parametrize("size", SHAPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        dict(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
        dict(size={"shortest_edge": 80}, crop_size={"height": 48, "width": 64}),
        dict(size={"height": 64, "width": 64}, do_center_crop=False),
        dict(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, do_pad=True),
        dict(size={"height": 48, "width": 64}, do_center_crop=False, do_pad=True),
    ],
    ids=["crop", "tighter crop", "squeeze", "pad", "pad and squeeze"],
)
def test_llava_sees_the_middle_or_the_padded_whole(size, options):
    kind = transformers.LlavaImageProcessorPil if "do_pad" in options else transformers.CLIPImageProcessorPil
    processor = kind(**PLAIN, **options)
    pixels = processor(ramp(*size), return_tensors="np")["pixel_values"][0]
    (grid,) = FAMILIES["llava"].place((Grid(8, 8),), size, settings(processor))
    assert (grid.height, grid.width) == (8, 8)
    if "do_pad" in options:
        x1, y1, x2, y2 = grid.region
        there = pixels[2] > 0.75  # blue: no padding
        height, width = there.shape
        shares = np.array([there.any(0).sum() / width, there.any(1).sum() / height])
        assert shares == pytest.approx([1 / (x2 - x1), 1 / (y2 - y1)], abs=0.04)
        pixels = pixels[:, there.any(1)][:, :, there.any(0)]
        assert pytest.approx(seen(pixels), abs=0.08) == (0, 0, 1, 1)
        assert (x1 + x2, y1 + y2) == pytest.approx((1, 1), abs=0.04)
    else:
        assert near(grid.region) == seen(pixels)


@needs_images
@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_llava_onevision_pads_one_of_several(size):
    processor = transformers.LlavaOnevisionImageProcessorPil(**PLAIN, size={"height": 64, "width": 64})
    pixels = processor([[ramp(*size), ramp(8, 8)]], return_tensors="np")["pixel_values"][0][0]
    (grid,) = FAMILIES["llava_onevision"].place((Grid(8, 8, after=1),), size, settings(processor))
    x1, y1, x2, y2 = grid.region
    there = pixels[2] > 0.75  # blue: no padding
    assert [there.any(0).mean(), there.any(1).mean()] == pytest.approx([1 / (x2 - x1), 1 / (y2 - y1)], abs=0.04)
    assert (x1 + x2, y1 + y2) == pytest.approx((1, 1), abs=0.04)


@needs_images
@pytest.mark.parametrize("size", SHAPES, ids=str)
@pytest.mark.parametrize("most", [4, 12])
def test_internvl_tiles(size, most):
    processor = transformers.GotOcr2ImageProcessorPil(
        **PLAIN, size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=most
    )
    pixels = processor(ramp(*size), return_tensors="np")["pixel_values"]
    found = FAMILIES["internvl"].place((PART,) * (len(pixels) - 1) + (SIDE,), size, settings(processor))
    assert [near(grid.region) for grid in found] == [seen(tile) for tile in pixels]


def test_internvl_puts_tiles_where_the_processor_does_for_any_shape():
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    several = 0
    for width, height in np.random.default_rng(0).integers(8, 400, (600, 2)).tolist():
        columns, rows = get_optimal_tiled_canvas((height, width), (32, 32), 1, 12)
        if columns * rows == 1:
            continue
        found = FAMILIES["internvl"].place((PART,) * (columns * rows) + (SIDE,), (width, height), None)
        assert found == (*crop_grids(rows, columns), SIDE), (width, height)
        several += 1
    assert several > 300


def test_internvl_says_what_it_cannot_know():
    config, runs = SimpleNamespace(), [Run(0, 1, 48), Run(0, 50, 16)]
    grids = FAMILIES["internvl"].image_grids(config, {"pixel_values": torch.zeros(4, 3, 8, 8)}, runs)
    assert grids == [(PART, PART, SIDE), (SIDE,)]
    assert FAMILIES["internvl"].place(grids[1], (10, 90), None) == (SIDE,)


@needs_images
@pytest.mark.parametrize("size", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["Idefics3ImageProcessorPil", "SmolVLMImageProcessorPil"])
def test_idefics3_crops(size, kind):
    processor = getattr(transformers, kind)(
        **PLAIN, size={"longest_edge": 128}, max_image_size={"longest_edge": 32}, return_row_col_info=True
    )
    given = processor([[ramp(*size)]], return_tensors="np")
    (rows,), (columns,) = given["rows"][0], given["cols"][0]
    assert max(rows, columns) > 1
    found = crops_in_prompt(layout(rows, columns))
    assert [near(grid.region) for grid in found] == [seen(crop) for crop in given["pixel_values"][0]]


CONFIG = SimpleNamespace(vision_config=SimpleNamespace(image_size=32, patch_size=4), scale_factor=2)


def layout(rows, columns, line=(LINE,), last=(LINE,)):
    """Token ids of one image in rows and columns of crops."""
    ids = [3]
    for row in range(rows):
        for column in range(columns):
            ids += [AROUND, 100 + 9 * row + column, *[IMAGE] * 16]
        ids += line
    return [*ids, *last, AROUND, WHOLE, *[IMAGE] * 16, AROUND]


def crops_in_prompt(ids):
    ids = torch.tensor([ids])
    (image,) = FAMILIES["idefics3"].image_grids(CONFIG, {}, find_runs(ids == IMAGE, ids))
    return image


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 1), (1, 4), (4, 1), (3, 2), (2, 2)])
def test_crops_lie_where_the_line_breaks_say(rows, columns):
    expected = (*crop_grids(rows, columns), SIDE)
    assert crops_in_prompt(layout(rows, columns)) == expected
    assert crops_in_prompt(layout(rows, columns, last=())) == expected  # two line breaks in one token


@pytest.mark.parametrize(
    "ids",
    [
        layout(2, 2, line=(), last=()),  # line breaks are no tokens here
        layout(2, 2, line=(5, 6)),  # something else stands between
        [3, *[AROUND, 100, *[IMAGE] * 16, LINE], *layout(1, 2)[1:]],  # rows of unequal length
    ],
)
def test_crops_in_no_raster_are_not_guessed_at(ids):
    assert crops_in_prompt(ids) == (PART,) * (len(crops_in_prompt(ids)) - 1) + (SIDE,)


def test_crops_given_as_embeddings_may_be_anything():
    ids = torch.tensor([layout(1, 2)])
    images = FAMILIES["idefics3"].image_grids(CONFIG, {}, find_runs(ids == IMAGE, None))
    assert {grid.region for image in images for grid in image} == {None}


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "idefics3"])
def test_the_rest_know_all_from_the_prompt(family):
    grids = (Grid(2, 2), Grid(4, 4, row_ends=1))
    assert FAMILIES[family].place(grids, (30, 40), None) == grids
