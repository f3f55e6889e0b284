import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from foveate.measure.eval.answers import downsample
from foveate.measure.overlay import seen_image
from tests.measure.folders import picture


@pytest.mark.parametrize("keep", [0.5, 0.22, 0.11])
def test_downsampling_leaves_the_share_of_the_pixels(keep):
    small = downsample(picture(width=300, height=200), keep)
    assert small.width * small.height / 60_000 == pytest.approx(keep, rel=0.02)


def test_downsampling_by_nothing_changes_nothing():
    image = picture()
    assert downsample(image, 1.0) is image
    assert downsample(picture(width=1, height=1), 0.1).size == (1, 1)


class _Processor:
    def __init__(self, **settings):
        self.image_processor = CLIPImageProcessor(
            size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}, **settings
        )


def test_a_cropped_image_is_shown_as_cropped():
    """Left half black, right half white, twice as wide as high: the crop loses a quarter on each side."""
    wide = Image.fromarray(np.repeat(np.array([[0] * 40 + [255] * 40], dtype=np.uint8), 40, 0)).convert("RGB")
    processor = _Processor(do_center_crop=True)
    seen = seen_image(processor, processor.image_processor(wide, return_tensors="pt"), 0, wide)
    assert seen.size == (20, 20)
    values = np.asarray(seen).astype(int)
    assert values[:, :7].max() < 30
    assert values[:, 13:].min() > 225


def test_an_image_that_is_only_resized_is_shown_as_given():
    image = picture()
    processor = _Processor(do_center_crop=False)
    assert seen_image(processor, processor.image_processor(image, return_tensors="pt"), 0, image) is image
