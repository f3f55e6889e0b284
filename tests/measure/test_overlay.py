from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.measure.overlay import GAP, HEAD, SMALLEST, ImageGrid, NoGridError, draw_overlay, image_grids
from tests.models.build import IMAGE, build, inputs


def stage(layer, *kept):
    return SimpleNamespace(layer=layer, kept=[torch.tensor(one) for one in kept])


def panel(sheet, column, row=0):
    left, top = GAP + column * (SMALLEST + GAP), GAP + HEAD + row * (SMALLEST + HEAD + GAP)
    return np.asarray(sheet)[top : top + SMALLEST, left : left + SMALLEST].astype(int)


def test_kept_patches_are_bright_and_the_rest_is_dim(tmp_path):
    image = Image.new("RGB", (SMALLEST, SMALLEST), (200, 160, 120))
    grid = ImageGrid(4, 4, torch.arange(16) + 7)
    sheet = Image.open(draw_overlay(image, [stage(0, [7, 12]), stage(3, [12])], grid, tmp_path / "kept.png"))
    cell = SMALLEST // 4

    def middle(column, place):
        y, x = divmod(place, 4)
        return panel(sheet, column)[y * cell + cell // 2, x * cell + cell // 2]

    assert (middle(0, 3) == [200, 160, 120]).all()
    for place in range(16):
        bright = (middle(1, place) == [200, 160, 120]).all()
        assert bright == (place in (0, 5))
        if not bright:
            assert middle(1, place).max() < 80
    assert (middle(2, 5) == [200, 160, 120]).all()
    assert middle(2, 0).max() < 80


def test_one_row_an_image_and_one_panel_a_stage(tmp_path):
    images = [Image.new("RGB", (40, 40), "white"), Image.new("RGB", (40, 20), "white")]
    grids = [ImageGrid(2, 2, torch.arange(4)), ImageGrid(1, 2, torch.tensor([9, 10]))]
    path = draw_overlay(images, [stage(2, [0, 9])], grids, tmp_path / "new" / "kept.png")
    sheet = Image.open(path)
    assert sheet.width == 2 * SMALLEST + 3 * GAP
    assert sheet.height == 2 * HEAD + SMALLEST + SMALLEST // 2 + 3 * GAP
    wide = panel(sheet, 1, row=1)[: SMALLEST // 2]
    assert (wide[80, 80] == 255).all()
    assert wide[80, 250].max() < 100


def test_a_kept_token_lies_where_the_batch_put_it():
    """Left padding, text before the image, two images: the positions are those of the dense prompt."""
    config, batch = build("llava").config, inputs("llava", "ragged")
    first, second = image_grids(config, batch, sample=1)
    ids = batch["input_ids"][1]
    assert (first.height, first.width) == (4, 4)
    assert (ids[first.positions] == IMAGE).all()
    assert (ids[second.positions] == IMAGE).all()
    assert first.positions.max() < second.positions.min()
    mask = second.mask(second.positions[5:7])
    assert mask.nonzero().tolist() == [[1, 1], [1, 2]]
    assert not first.mask(second.positions).any()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_images_of_any_size_have_their_own_grids(family):
    config, batch = build(family).config, inputs(family, "ragged")
    sizes = [[(one.height, one.width) for one in image_grids(config, batch, sample)] for sample in range(3)]
    assert sizes == [[(4, 6)], [(6, 6), (4, 6)], [(6, 6)]]


def test_text_alone_has_no_grid():
    assert image_grids(build("qwen2_5_vl").config, inputs("qwen2_5_vl", "ragged with text only"), sample=1) == []


def test_tokens_that_lie_on_no_square_are_said():
    config, batch = build("llava").config, inputs("llava", "one image")
    batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[IMAGE]])], 1)
    with pytest.raises(NoGridError, match="cannot draw"):
        image_grids(config, batch)
    del batch["pixel_values"]
    with pytest.raises(NoGridError, match="cannot draw"):
        image_grids(config, batch)
