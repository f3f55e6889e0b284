"""PaddleOCR-VL, LightOnOCR, GOT-OCR 2, Ovis2, LFM2-VL, MiniCPM-V: grids against processors and the models' own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

from foveate import Random
from foveate.engine import attach
from foveate.errors import UnsupportedModelError
from foveate.families import Grid, Run
from foveate.families.grids import WHOLE, tiles
from foveate.families.turns import where_grids_lie
from tests.families.test_grids import shown
from tests.families.test_grids_of_more_processors import without_init, written
from tests.families.test_grids_of_processors import SHAPES, grids_of, words
from tests.families.test_processing import needs_images, picture
from tests.models.build import BUILDERS, build, inputs, make
from tests.models.images import IMAGE, LINE, PART, SIDE, VISION_END, VISION_START
from tests.models.small import FIRST, RIGHT

SAMPLES = ["w3 <image> w4 <image> w5", "<image> w6", "w7 <image> w9 <image> w8"]


@needs_images
@pytest.mark.skipif("paddleocr_vl" not in BUILDERS, reason="this transformers cannot make it")
def test_paddleocr_vl():
    cutter = transformers.PaddleOCRVLImageProcessorPil(
        patch_size=4, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    pixels = cutter([picture(*shape) for shape in SHAPES], return_tensors="pt")
    processor = without_init(transformers.PaddleOCRVLProcessor, image_processor=cutter, image_token="<image>")
    given = {**written(SAMPLES, pixels, processor, words(**{"<image>": IMAGE})), **pixels}
    tokens = grids_of("paddleocr_vl", {**given, "mm_token_type_ids": (given["input_ids"] == IMAGE).int()})
    # in tokens of 8 pixels, at most 64 of them: 200 x 60 is 117 x 35 with as many pixels as 64 x 64
    expected = [(8, 8), (5, 12), (4, 2), (11, 4), (14, 4)]
    assert [(grid.width, grid.height) for row in tokens.grids for grid in row] == expected


@needs_images
def test_ovis2():
    cutter = transformers.Ovis2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=6)
    pixels = cutter([picture(*shape) for shape in SHAPES], return_tensors="pt")
    grids = pixels.pop("grids")
    named = {"<IMG_ATOM>": IMAGE, "<IMG_START>": VISION_START, "<IMG_GRID>": FIRST, "<IMG_COL>": RIGHT}
    named |= {"<IMG_ROW>": LINE, "<IMG_END>": VISION_END}
    processor = without_init(transformers.Ovis2Processor, image_seq_length=16)
    runs = [processor.replace_image_token({"grids": grids}, number) for number in range(5)]
    text = [f"w3 {runs[0]} w4 {runs[1]}", f"{runs[2]} w5", f"w6 {runs[3]}{runs[4]} w7"]
    ids = words(**named)(text, return_tensors="pt", padding=True)
    given = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
    tokens = grids_of("ovis2", {**given, "pixel_values": pixels["pixel_values"]})
    rasters = [tuple(one) for one in torch.as_tensor(grids).tolist()]
    assert len({*rasters}) > 2
    found = [grid.region for row in tokens.grids for grid in row]
    assert found == [region for one in rasters for region in (WHOLE, *(tiles(*one) if one != (1, 1) else ()))]
    assert [int(row.max()) + 1 for row in tokens.image] == [2, 1, 2]


@needs_images
def test_got_ocr2():
    cutter = transformers.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4
    )
    pixels = cutter([picture(*shape) for shape in SHAPES], return_tensors="pt")
    counts = pixels.pop("num_patches").tolist()
    runs = [" ".join(["<imgpad>"] * 16 * count) for count in counts]
    text = [f"w3 {runs[0]} w4 {runs[1]} w8", f"{runs[2]} w5", f"w6 {runs[3]} w9 {runs[4]} w7"]
    ids = words(**{"<imgpad>": IMAGE})(text, return_tensors="pt", padding=True)
    given = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
    tokens = grids_of("got_ocr2", {**given, "pixel_values": pixels["pixel_values"]})
    images = [(SIDE,) if count == 1 else (PART,) * count for count in counts]
    assert len({*counts}) > 1
    assert tokens.grids == (images[0] + images[1], images[2], images[3] + images[4])


@pytest.mark.skipif("minicpmv4_7" not in BUILDERS, reason="this transformers cannot make it")
@pytest.mark.parametrize("layout", ["ragged", "video"])
def test_minicpm_lays_slices_on_a_canvas_as_the_grids_say(layout):
    model, batch = build("minicpmv4_7"), inputs("minicpmv4_7", layout)
    takes = {name: value for name, value in batch.items() if not name.startswith("pixel")}
    axes, _ = model.model.get_rope_index(**takes)
    tokens = shown(model, batch, "forward")[0]
    seen = 0
    for sample, grids in enumerate(tokens.grids):
        origin = canvas = torch.zeros(2)
        for number, grid in enumerate(grids):
            mine = tokens.grid[sample] == number
            places = tokens.position[sample, mine]
            place = axes[1:, sample, places]
            for axis, own in zip(place, (tokens.row, tokens.column), strict=True):
                assert torch.equal(axis.unique(return_inverse=True)[1], own[sample, mine])
            if grid.region == WHOLE:
                origin, canvas = place.amin(1), place.amax(1) + 1 - place.amin(1)
            else:
                left, top = (edge * size for edge, size in zip(grid.region[:2], canvas.flip(0), strict=True))
                assert (place.amin(1) - origin).tolist() == [round(float(top)), round(float(left))]
                seen += 1
    assert seen or layout == "video"


@pytest.mark.skipif("lfm2_vl" not in BUILDERS, reason="this transformers cannot make it")
def test_convolutions_with_a_bias_are_refused():
    cls, config = BUILDERS["lfm2_vl"]()
    config.text_config.conv_bias = True
    model = make(cls, config)
    with pytest.raises(UnsupportedModelError, match="its convolutions have a bias") as caught:
        attach(model, Random(keep=0.5))
    assert "\n" not in str(caught.value)


def test_images_of_beams_take_their_grids_and_others_take_none():
    first, second = torch.zeros(6, 2), torch.ones(6, 2)
    runs = [Run(0, 1, 6, IMAGE), Run(1, 1, 6, IMAGE)]
    assert [found[2] for found in where_grids_lie(runs, [Grid(2, 3)], [first, first])] == [Grid(2, 3)] * 2
    assert where_grids_lie(runs, [Grid(2, 3)], [first, second]) is None  # one was encoded by another call
    assert [found[2] for found in where_grids_lie(runs, [Grid(2, 3), Grid(3, 2)], [first, second])] == [
        Grid(2, 3),
        Grid(3, 2),
    ]
    assert where_grids_lie(runs, [Grid(2, 3), Grid(2, 2)]) is None


def test_pages_and_tiles_of_got_ocr2_are_told_where_a_size_is_given():
    from foveate.families.got_ocr2 import GOT_OCR2

    placed = GOT_OCR2.place((PART,) * 3, (64, 32), SimpleNamespace())
    assert [grid.region for grid in placed] == [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), WHOLE]
