from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.families import FAMILIES, Grid
from foveate.families.grids import WHOLE, tiles
from foveate.learn.errors import TrainingDataError
from foveate.learn.glimpse.targets import placed, target_mask, target_masks


def marks(mask, grid):
    """(row, column) of the tokens that are set, on a grid without separators."""
    return {divmod(place, grid.width) for place in mask.nonzero().flatten().tolist()}


def test_the_published_rule():
    grid = Grid(4, 10)
    assert marks(target_mask([(0.25, 0.3, 0.55, 0.7)], [grid]), grid) == set(product((1, 2), (2, 3, 4, 5)))
    # an edge on a line between cells touches the cell behind it, but for the image's own edge
    assert marks(target_mask([(0.0, 0.0, 0.5, 0.5)], [grid]), grid) == set(product((0, 1, 2), range(6)))
    assert marks(target_mask([(0.95, 0.8, 1.0, 1.0)], [grid]), grid) == {(3, 9)}
    assert target_mask([(0.0, 0.0, 1.0, 1.0)], [grid]).all()
    assert marks(target_mask([(0.0, 0.0, 0.01, 0.01), (0.5, 0.5, 0.51, 0.51)], [grid]), grid) == {(0, 0), (2, 5)}


side = st.integers(1, 12)


@st.composite
def boxes(draw):
    x, y = (sorted(draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True))) for _ in "xy")
    return tuple(value / 1000 for value in (x[0], y[0], x[1], y[1]))


@given(st.lists(boxes(), max_size=3), side, side, st.integers(0, 1), st.integers(0, 2))
def test_a_cell_is_a_target_exactly_if_a_box_touches_it(found, height, width, row_ends, behind):
    """Cell by cell: a cell from a to b is touched where the box starts before b and does not end before a."""
    grid = Grid(height, width, row_ends=row_ends, after=behind)
    expected = []
    for row in range(height):
        for column in range(width):
            expected.append(
                any(
                    x1 * width < column + 1 and x2 * width >= column and y1 * height < row + 1 and y2 * height >= row
                    for x1, y1, x2, y2 in found
                )
            )
        expected += [False] * row_ends
    assert target_mask(found, [grid]).tolist() == expected + [False] * behind


def test_every_grid_of_an_image_has_its_targets():
    box = [(0.5, 0.5, 0.7, 0.7)]
    small, large = Grid(2, 2), Grid(4, 4, row_ends=1)
    mask = target_mask(box, [small, large])
    assert mask.tolist() == target_mask(box, [small]).tolist() + target_mask(box, [large]).tolist()
    assert mask.nonzero().flatten().tolist() == [3, 4 + 2 * 5 + 2]


between_lines = st.integers(0, 5000).map(lambda number: (number + 0.5) / 5001)  # on no line between cells


@given(between_lines, between_lines, between_lines, between_lines, st.integers(1, 3), st.integers(1, 3), side, side)
def test_tiles_have_the_targets_of_one_large_grid(x1, y1, x2, y2, rows, columns, height, width):
    box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    parts = [Grid(height, width, region=region) for region in tiles(rows, columns)]
    cut = target_mask([box], parts).view(rows, columns, height, width).transpose(1, 2).flatten()
    assert torch.equal(cut, target_mask([box], [Grid(rows * height, columns * width)]))


def test_a_part_has_what_lies_in_it():
    grid = Grid(2, 2, region=(0.5, 0.5, 1.0, 1.0))
    assert marks(target_mask([(0.1, 0.1, 0.6, 0.6)], [grid]), grid) == {(0, 0)}
    assert not target_mask([(0.1, 0.1, 0.4, 0.9), (0.0, 0.0, 1.0, 0.45)], [grid]).any()


def test_padding_is_no_target():
    grid = Grid(4, 2, region=(0.0, -0.5, 1.0, 1.5))  # a wide image in a square
    assert marks(target_mask([(0.0, 0.0, 1.0, 0.9)], [grid]), grid) == set(product((1, 2), (0, 1)))


def test_no_boxes_no_target():
    assert not target_mask([], [Grid(1, 7, known=False), Grid(2, 2)]).any()
    assert target_mask([], []).shape == (0,)


def test_an_unknown_layout_is_an_error_only_with_boxes():
    with pytest.raises(TrainingDataError, match="boxes cannot be placed: how the visual tokens lie"):
        target_mask([(0.0, 0.0, 1.0, 1.0)], [Grid(1, 7, known=False)])


def test_parts_that_lie_nobody_knows_where():
    parts = [Grid(2, 2, region=None), Grid(2, 2, region=None), Grid(2, 2)]
    with pytest.raises(TrainingDataError, match="an image was cut into 3 parts, and it is unknown which lies where"):
        target_mask([(0.0, 0.0, 1.0, 1.0)], parts)
    assert not target_mask([], parts).any()


def test_the_images_size_places_its_tiles():
    tile, whole = Grid(2, 2, region=None), Grid(2, 2)
    grids = [(tile, tile, whole), ()]
    known = placed(grids, [[(20, 10)], []], FAMILIES["internvl"], None)
    assert target_masks([[[(0.6, 0.1, 0.7, 0.4)]], []], known).tolist() == [
        [*[False] * 4, True, False, False, False, False, True, False, False],
        [False] * 12,
    ]
    tall = placed(grids, [[(10, 20)], []], FAMILIES["internvl"], None)
    assert [grid.region for grid in tall[0][0]] == [*tiles(2, 1), WHOLE]
    with pytest.raises(TrainingDataError, match="sample 1 has 0 images, and sizes for 1"):
        placed(grids, [[(20, 10)], [(5, 5)]], FAMILIES["internvl"], None)


def test_a_batch():
    corner, whole = (0.0, 0.0, 0.1, 0.1), (0.0, 0.0, 1.0, 1.0)
    grid, wide = Grid(2, 2), Grid(1, 3)
    one, two, text = [[corner]], [[], [whole]], []
    expected = [[1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1], [0] * 7]
    masks = target_masks([one, two, text], [[[grid]], [[grid], [wide]], []])
    assert masks.dtype == torch.bool
    assert masks.int().tolist() == expected
    assert target_masks([one], [(grid, wide)]).int().tolist() == [[1, 0, 0, 0, 1, 0, 0]]  # one image of two grids


def test_boxes_for_other_images_than_there_are():
    with pytest.raises(TrainingDataError, match="sample 1 has 2 images, and boxes for 1"):
        target_masks([[[]], [[]]], [[[Grid(1, 1)]], [[Grid(1, 1)], [Grid(1, 1)]]])
