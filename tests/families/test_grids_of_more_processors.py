"""As test_grids_of_processors.py, for LLaVA's and Gemma's relatives."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
import transformers

from foveate.errors import UnsupportedModelError
from foveate.families import FAMILIES, Grid, Run
from tests.families.test_grids_of_processors import SHAPES, grids_of, words
from tests.families.test_processing import needs_images, picture
from tests.models.build import BUILDERS, build
from tests.models.images import FIRST_CROP, IMAGE, LINE, PART, SIDE, VIDEO, VISION_END, VISION_START, WHOLE
from tests.models.llava_and_gemma import BREAK, END
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
    assert tokens.grids[5] == (Grid(4, 4, after=1),) * 3
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


@pytest.mark.filterwarnings("ignore:__array__")  # in what its processor does for labels
def test_paligemma():
    tokenizer = words(**{"<image>": IMAGE})
    tokenizer.bos_token = "w1"
    processor = transformers.PaliGemmaProcessor(
        transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}, image_seq_length=16), tokenizer
    )
    images = [[picture(*SHAPES[0]), picture(*SHAPES[1])], [picture(*SHAPES[2])]]
    inputs = processor(images=images, text=["<image> <image> w3 w4", "<image> w5"], return_tensors="pt", padding=True)
    inputs["input_ids"].clamp_(max=127)  # it adds tokens that the tiny model has not
    tokens = grids_of("paligemma", inputs)
    assert tokens.grids == ((SIDE, SIDE), (SIDE,))
    assert [row.unique().tolist() for row in tokens.image] == [[0, 1], [-1, 0]]


def test_gemma3_with_crops():
    """A wide image has crops; each of them is an image of its own, behind the whole."""
    named = {"<image>": IMAGE, "<start_of_image>": VISION_START, "<end_of_image>": VISION_END}
    tokenizer = words(**named)
    for name, word in (("image", "<image>"), ("boi", "<start_of_image>"), ("eoi", "<end_of_image>")):
        setattr(tokenizer, f"{name}_token", word)
        setattr(tokenizer, f"{name}_token_id", named[word])
    cutter = transformers.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    crops = dict(
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=16,
        pan_and_scan_max_num_crops=3,
        pan_and_scan_min_ratio_to_activate=2.0,
    )
    processor = transformers.Gemma3Processor(cutter, tokenizer, image_seq_length=16)
    images = [[picture(*shape) for shape in SHAPES[:2]], [picture(*SHAPES[4])]]
    text = ["w3 <start_of_image> w4 <start_of_image> w5", "<start_of_image> w6"]
    inputs = processor(images=images, text=text, return_tensors="pt", padding=True, images_kwargs=crops)
    inputs["input_ids"].clamp_(max=127)
    tokens = grids_of("gemma3", inputs)
    assert tokens.grids == ((SIDE,) * (1 + 4), (SIDE,) * 4)  # 64 x 64; 40 x 100 and 200 x 60 with three crops each
    assert tokens.image[0].unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("family", ["llava_onevision", "llava_next_video"])
def test_videos(family):
    """As many tokens as the processor writes, frame behind frame; that wants torchvision only to read videos."""
    kind = "LlavaOnevisionProcessor" if family == "llava_onevision" else "LlavaNextVideoProcessor"
    processor = without_init(
        getattr(transformers, kind),
        num_image_tokens=16,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        video_token="<video>",
        video_token_id=VIDEO,
    )
    films = {"pixel_values_videos": torch.randn(2, 3, 3, 32, 32)}
    ids = torch.tensor(
        [[3, *[VIDEO] * processor.replace_video_token(films, one).count("<video>"), 4] for one in (0, 1)]
    )
    tokens = grids_of(family, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **films})
    ends = 1 if family == "llava_onevision" else 0
    assert tokens.grids == ((Grid(2, 2), Grid(2, 2), Grid(2, 2, after=ends)),) * 2
    assert tokens.image.unique().tolist() == [0]


@pytest.mark.parametrize("family", ["aya_vision", "cohere2_vision"])
def test_tiles_in_runs_of_their_own(family):
    if family not in BUILDERS:
        pytest.skip("this transformers cannot make it")
    cutter = transformers.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4
    )
    pixels = cutter([picture(*shape) for shape in SHAPES], return_tensors="pt")
    tiles = pixels["num_patches"].tolist()
    kind = "AyaVisionProcessor" if family == "aya_vision" else "Cohere2VisionProcessor"
    named = {"<start>": VISION_START, "<end>": VISION_END, "<patch>": IMAGE, "TILE_GLOBAL": WHOLE, "<line>": LINE}
    named |= {f"TILE_{number}": FIRST_CROP + number for number in range(1, 5)}
    processor = without_init(
        getattr(importlib.import_module(f"transformers.models.{family}.processing_{family}"), kind),
        image_token="<patch>" if family == "cohere2_vision" else "<image>",
        patch_size=4 if family == "cohere2_vision" else 8,  # tokens along a side, and pixels along that of a token
        img_size=32,
        start_of_img_token="<start>",
        end_of_img_token="<end>",
        boi_token="<start>",
        eoi_token="<end>",
        img_patch_token="<patch>",
        img_line_break_token="<line>",
        tile_token="TILE",
        tile_global_token="TILE_GLOBAL",
    )
    runs = [processor.replace_image_token(pixels, number) for number in range(5)]
    text = [f"w3 {runs[0]} w4 {runs[1]}", f"{runs[2]} w5", f"w6 {runs[3]}{runs[4]} w7"]
    ids = words(**named)(text, return_tensors="pt", padding=True)
    inputs = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
    tokens = grids_of(family, {**inputs, "pixel_values": pixels["pixel_values"]})
    assert len(set(tiles)) > 1
    assert tokens.grids == tuple(
        tuple(grid for number in sample for grid in (*(PART,) * (number - 1), SIDE))
        for sample in (tiles[:2], tiles[2:3], tiles[3:])
    )
    for sample, row in zip((tiles[:2], tiles[2:3], tiles[3:]), tokens.image, strict=True):
        assert torch.bincount(row[row >= 0]).tolist() == [16 * number for number in sample]
