"""Small pictures: what is cut out of a scene, and what the language model is shown of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.tiny.test_training import MINUTE

from foveate.tiny.model import build
from foveate.tiny.scenes import LAYOUTS, make_scene
from foveate.tiny.training.pool import Pool, patch_labels
from foveate.tiny.training.small_pictures import SmallBatches, cut_out, rectangles, small_pictures
from foveate.tiny.training.vision_stage import see, to_pixels

RECIPE = replace(MINUTE, small=((12, 5, 1.0), (40, 4, 0.0)), small_from=4, small_every=2)


@pytest.fixture(scope="module")
def pool():
    scenes = [make_scene(np.random.default_rng([8, i]), layout=LAYOUTS[i % 3]) for i in range(12)]
    labels = np.stack([patch_labels(scene.objects) for scene in scenes])
    return Pool(np.stack([scene.image for scene in scenes]), labels, [scene.objects for scene in scenes])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(MINUTE.shape).eval()


def test_rectangles_are_all_of_that_area_that_are_not_too_long():
    assert rectangles(12, 16) == [(3, 4), (4, 3), (2, 6), (6, 2)], "1 x 12 is too long"
    assert rectangles(16, 16) == [(4, 4), (2, 8), (8, 2)]
    assert rectangles(160, 16) == [(10, 16), (16, 10)], "8 x 20 is larger than the grid"


@pytest.mark.parametrize("patches", [12, 40])
def test_a_cut_out_holds_an_object_and_cuts_none(pool, patches):
    rng = np.random.default_rng(0)
    for picture in (cut_out(rng, pool, patches) for _ in range(60)):
        assert picture.wide * picture.high == patches == len(picture.places(16))
        shown = np.zeros((256, 256), dtype=bool)
        for place in picture.places(16):
            row, column = divmod(int(place), 16)
            shown[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = True
        boxes = [thing.box for thing in pool.objects[picture.scene]]
        parts = {(x0, y0, x1, y1): shown[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes}
        assert picture.objects
        assert {thing.box for thing in picture.objects} == {box for box, part in parts.items() if part.any()}
        assert all(parts[thing.box].all() for thing in picture.objects)


def test_nothing_around_the_picture_is_seen(model, pool, tmp_path):
    sizes = small_pictures(model, pool, RECIPE, tmp_path / "small.pt")
    rng = np.random.default_rng([91, RECIPE.seed])
    first = cut_out(rng, pool, 12)
    canvas = np.full((1, 256, 256, 3), 127, np.uint8)
    rows, columns = (slice(16 * a, 16 * (a + n)) for a, n in ((first.top, first.high), (first.left, first.wide)))
    canvas[0, rows, columns] = pool.images[first.scene][rows, columns]
    wanted = see(model, to_pixels(canvas))[0][0, first.places(16)]
    torch.testing.assert_close(sizes[0].tokens[0].float(), wanted.float(), rtol=2e-2, atol=2e-2)
    assert [size.tokens.shape for size in sizes] == [(5, 12, 64), (4, 40, 64)]
    again = small_pictures(model, pool, RECIPE, tmp_path / "small.pt")
    assert all(
        torch.equal(a.tokens, b.tokens) and np.array_equal(a.keep, b.keep) for a, b in zip(sizes, again, strict=True)
    )


def test_batches_come_when_the_recipe_says_and_ask_about_what_is_there(model, pool, tmp_path):
    sizes = small_pictures(model, pool, RECIPE, tmp_path / "small.pt")
    batches = SmallBatches(RECIPE, sizes)
    assert [batches(step) is not None for step in range(8)] == [False, False, False, False, True, False, True, False]
    for step in range(4, 40, 2):
        tokens, packed = batches(step)
        assert tokens.shape == (2, 12, 64), "a size of weight 0 never comes"
        assert packed.asked
        for b, keep in enumerate(packed.keep):
            number = next(i for i, own in enumerate(sizes[0].keep) if np.array_equal(own, keep))
            assert torch.equal(tokens[b].bfloat16(), sizes[0].tokens[number])
            there = {thing.box for thing in sizes[0].pool.objects[number]}
            boxes = {box for row, _, _, question in packed.asked if row == b for box in question.boxes}
            assert boxes <= there
    assert np.array_equal(batches(6)[1].ids, SmallBatches(RECIPE, sizes)(6)[1].ids)


def test_a_recipe_may_have_none():
    assert SmallBatches(replace(RECIPE, small=()), [])(4) is None
