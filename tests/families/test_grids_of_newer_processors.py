"""As test_grids_of_processors.py, for ERNIE-4.5-VL, EXAONE-4.5, Qwen's Omni models and Step-3.7."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
import transformers

from foveate.families import FAMILIES, Grid
from foveate.families.grids import tiles
from tests.families.test_grids_of_more_processors import without_init, written
from tests.families.test_grids_of_processors import grids_of, words
from tests.families.test_processing import needs_images, picture
from tests.models.build import BUILDERS
from tests.models.images import AROUND, IMAGE, LINE, SIDE, VISION_END, VISION_START, WHOLE

pytestmark = needs_images
TEXT = ["w3 <s> <image> <e> w4 <s> <image> <e> w5", "<s> <image> <e> w6"]
SHAPES = [(48, 16), (16, 40), (24, 24)]  # (width, height) in pixels, that need no resizing to cells of 8
GRIDS = ((Grid(2, 6), Grid(5, 2)), (Grid(3, 3),))
PATCHES = {"size": {"shortest_edge": 8**2, "longest_edge": 64**2}, "patch_size": 4, "merge_size": 2}
# the image processor on Pillow, and the processor, which would want another for videos
SIZED = {
    "ernie4_5_vl_moe": ("Ernie4_5_VLMoeImageProcessorPil", "Ernie4_5_VLMoeProcessor"),
    "exaone4_5": ("Qwen2VLImageProcessorPil", "Exaone4_5_Processor"),
    "qwen2_5_omni_thinker": ("Qwen2VLImageProcessorPil", "Qwen2_5OmniProcessor"),
    "qwen3_omni_moe_thinker": ("Qwen2VLImageProcessorPil", "Qwen3OmniMoeProcessor"),
}


@pytest.mark.parametrize("family", [family for family in SIZED if family in BUILDERS])
def test_images_of_any_size(family):
    cutter, kind = (getattr(transformers, name) for name in SIZED[family])
    cut = cutter(**PATCHES)
    marks = {"<s>": VISION_START, "<e>": VISION_END, "<image>": IMAGE}
    pixels = cut([picture(*shape) for shape in SHAPES], return_tensors="pt")
    around = {"image_start_token_id": VISION_START, "image_end_token_id": VISION_END, "image_token_id": IMAGE}
    processor = without_init(
        kind, image_processor=cut, image_token="<image>", video_token_id=-1, video_start_token_id=-1, **around
    )
    processor.video_end_token_id = -1
    inputs = {**written(TEXT, pixels, processor, words(**marks)), **pixels}
    if hasattr(processor, "create_moe_mm_token_type_ids"):
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
        types = torch.tensor(processor.create_moe_mm_token_type_ids(inputs["input_ids"].tolist()))
        assert int((types > 0).sum()) == int(inputs["mm_token_type_ids"].sum()) + 2 * len(SHAPES)
        inputs["moe_mm_token_type_ids"] = types
    assert grids_of(family, inputs).grids == GRIDS


# (width, height): rows and columns of tiles that the processor plans with tiles of 32 pixels and a whole of 64
PLANS = {(64, 40): (1, 2), (60, 60): (0, 0), (96, 66): (2, 3), (33, 140): (5, 1), (20, 90): (3, 3), (10, 50): (0, 0)}


@pytest.mark.skipif("step3p7" not in BUILDERS, reason="this transformers has no such model")
def test_step_tiles():
    """As the processor plans them and writes them into the prompt; its pixels want torchvision."""
    module = importlib.import_module("transformers.models.step3p7.image_processing_step3p7")
    planner = without_plan(module.Step3p7ImageProcessor)
    named = {"<patch_start>": AROUND, "<patch_end>": WHOLE, "<patch_newline>": LINE, "<im_start>": VISION_START}
    tokenizer = words(**named, **{"<im_end>": VISION_END, "<image>": IMAGE})
    processor = object.__new__(transformers.Step3p7Processor)
    vars(processor).update(
        image_feature_placeholder=" <image>" * 16 + " ", patch_feature_placeholder=" <image>" * 4 + " "
    )
    found, masks = [], []
    for width, height in PLANS:
        *_, across, down, _ = planner._plan_patches(width, height, 64, 32)
        assert (down, across) == PLANS[width, height]
        found.append(down * across)
        masks.append([column == across - 1 and row < down - 1 for row in range(down) for column in range(across)])
    image_inputs = {"num_local_patches": found, "patch_newline_masks": masks}
    text = " w3 ".join(spread(processor.replace_image_token(image_inputs, number)) for number in range(len(found)))
    ids = tokenizer([text], return_tensors="pt")
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": ids["input_ids"],
        "attention_mask": ids["attention_mask"],
        "pixel_values": torch.randn(len(found), 3, 64, 64, generator=generator),
        "pixel_values_local": torch.randn(sum(found), 3, 32, 32, generator=generator),
        "num_local_patches": torch.tensor(found),
    }
    expected = []
    for down, across in PLANS.values():
        expected += [dataclasses.replace(Grid(2, 2), region=region) for region in tiles(down, across)] + [SIDE]
    assert grids_of("step3p7", inputs).grids == (tuple(expected),)


def without_plan(kind):
    """The image processor without what its making wants."""
    made = object.__new__(kind)
    made.max_image_size = 3024
    return made


def spread(text):
    """With spaces around each token, as the tests' tokenizer splits at them."""
    return text.replace("<", " <").replace(">", "> ")


def test_step_thin_strips_are_padded_to_a_square():
    """Right of a strip that is high, below one that is wide; other images are not."""
    step, image = FAMILIES["step3p7"], (SIDE,)
    assert step.place(image, (10, 50), None)[0].region == (0, 0, 5, 1)
    assert step.place(image, (50, 10), None)[0].region == (0, 0, 1, 5)
    assert step.place(image, (40, 200), None) == step.place(image, (10, 40), None) == image
