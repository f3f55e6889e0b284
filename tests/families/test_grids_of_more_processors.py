"""As test_grids_of_processors.py, for LLaVA's and Gemma's relatives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

from foveate.errors import UnsupportedModelError
from foveate.families import FAMILIES, Grid, Run
from tests.families.test_grids_of_processors import SHAPES, grids_of, words
from tests.families.test_processing import needs_images, picture
from tests.tiny_models import build
from tests.tiny_more import BREAK, END
from tests.tiny_pictures import IMAGE, SIDE
from tests.vision_probe import looked

pytestmark = needs_images


def without_init(kind, **attributes):
    """A processor that wants torchvision, for videos, when made; what it does with images it does without."""
    if not hasattr(kind, "replace_image_token"):
        pytest.skip("this transformers writes image tokens elsewhere")
    made = object.__new__(kind)
    vars(made).update(attributes)
    return made


def written(text, image_inputs, processor, tokenizer):
    """Token ids of prompts, `<image>` replaced as the processor does it."""
    number, filled = 0, []
    for sample in text:
        first, *rest = sample.split("<image>")
        for part in rest:
            first += processor.replace_image_token(image_inputs, number).replace("<image>", " <image> ") + part
            number += 1
        filled.append(first)
    ids = tokenizer(filled, return_tensors="pt", padding=True)
    return {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}


# (width, height) in pixels; grid behind the small one; the last three are scaled down, as they have more tokens
# than 1.1 ** 2 times one tile's 16: from 8 x 4 by sqrt(32 / 16), from 4 x 6 by sqrt(24 / 16), from 8 x 8 by 2
ALONE = {(64, 22): (2, 8), (90, 31): (2, 8), (30, 64): (5, 2), (53, 32): (3, 4), (64, 64): (4, 4)}


@pytest.fixture
def onevision(monkeypatch):
    monkeypatch.setattr(build("llava_onevision").config, "vision_aspect_ratio", "anyres_max_1")
    cutter = transformers.LlavaOnevisionImageProcessorPil(
        size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]]
    )
    processor = without_init(
        transformers.LlavaOnevisionProcessor,
        image_processor=cutter,
        num_image_tokens=16,
        image_token="<image>",
        vision_aspect_ratio="anyres_max_1",
        vision_feature_select_strategy="full",
    )

    def prepare(images, text):
        pixels = cutter(images, return_tensors="pt")
        return {**written(text, pixels, processor, words(**{"<image>": IMAGE})), **pixels}

    return prepare


def test_llava_onevision(onevision):
    images = [[picture(*shape)] for shape in ALONE]
    several = [picture(*shape) for shape in SHAPES[:3]]
    text = [f"w3 <image> w{number}" for number in range(5)] + ["w4 <image> <image> w5 <image>"]
    tokens = grids_of("llava_onevision", onevision([*images, several], text))
    assert [row[0] for row in tokens.grids[:5]] == [SIDE] * 5
    assert [row[1] for row in tokens.grids[:5]] == [Grid(*size, row_ends=1) for size in ALONE.values()]
    assert tokens.grids[5] == (Grid(4, 4, behind=1),) * 3
    assert tokens.image[5].unique().tolist() == [0, 1, 2]


def test_llava_onevision_scaled_down(onevision):
    """Such a token is a mean of what the encoder put out; where none is in the prompt, there is no such error."""
    whole, scaled = onevision([[picture(64, 22)]], ["<image> w3"]), onevision([[picture(53, 32)]], ["<image> w3"])
    for how in ("generate", "forward"):
        assert looked(build("llava_onevision"), whole, how)
        with pytest.raises(UnsupportedModelError, match="averages"):
            looked(build("llava_onevision"), scaled, how)


@pytest.mark.parametrize("family", ["pixtral", "mistral3"])
def test_pixtral_and_mistral3(family):
    merge = 2 if family == "mistral3" else 1
    patch = 4 * merge
    cutter = transformers.PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=patch)
    pixels = cutter([picture(*shape) for shape in SHAPES], return_tensors="pt")
    # its processor wants torchvision
    runs = []
    for high, wide in torch.as_tensor(pixels["image_sizes"]).tolist():
        rows = [["[IMG]"] * (wide // patch) for _ in range(high // patch)]
        runs.append(" [IMG_BREAK] ".join(" ".join(row) for row in rows) + " [IMG_END]")
    text = [f"w3 {runs[0]} w4 {runs[1]} w5", f"{runs[2]} w6", f"w7 {runs[3]} {runs[4]} w8"]
    named = {"[IMG]": IMAGE, "[IMG_BREAK]": BREAK, "[IMG_END]": END}
    ids = words(**named)(text, return_tensors="pt", padding=True)
    inputs = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"], **pixels}
    tokens = grids_of(family, inputs)
    # 64 x 64, 25.6 x 64, 33 x 20, 64 x 22 and 64 x 19.2 pixels, and what is left over of a patch is one more
    expected = [(64, 64), (26, 64), (33, 20), (64, 22), (64, 19)]
    assert [(grid.width, grid.height) for row in tokens.grids for grid in row] == [
        (-(-width // patch), -(-height // patch)) for width, height in expected
    ]
    assert [int(row.max()) + 1 for row in tokens.image] == [2, 1, 2]


def test_pixtral_rows_that_nothing_stands_between_are_not_guessed_at():
    features = SimpleNamespace(pooler_output=[torch.zeros(12, 3), torch.zeros(6, 3)])
    config = SimpleNamespace(vision_config=SimpleNamespace(model_type="pixtral", patch_size=4))
    given = {"mm_encoder_outputs": {"image": features}}
    runs = [Run(0, 1, 12, IMAGE), Run(0, 14, 3, IMAGE), Run(0, 18, 3, IMAGE)]
    grids = [(Grid(1, 12, known=False),), (Grid(2, 3),)]
    assert FAMILIES["llava"].image_grids(config, given, runs) == grids
    runs[2] = Run(0, 20, 3, IMAGE)
    assert FAMILIES["llava"].image_grids(config, given, runs)[1] == (Grid(1, 6, known=False),)
    assert FAMILIES["llava"].image_grids(config, given, runs[:2]) is None
