"""Grids add up to what the processors write: images of odd shapes, through the processor, into a tiny model."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from foveate.families import Grid, load_processor
from tests.families.test_grids import shown
from tests.families.test_processing import messages, needs_images, picture, qwen_folder, tokenizer
from tests.models.build import BUILDERS, build, visual
from tests.models.images import (
    AROUND,
    FIRST_CROP,
    IMAGE,
    LINE,
    PART,
    SIDE,
    VIDEO,
    VISION_END,
    VISION_START,
    WHOLE,
    crop_grids,
)
from tests.models.sizes import PAD

pytestmark = needs_images
SHAPES = [(64, 64), (40, 100), (33, 20), (90, 31), (200, 60)]  # (width, height) in pixels


def words(**named: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of the tiny models' 128 ids, special tokens where they have them."""
    vocabulary = [f"w{i}" for i in range(128)]
    vocabulary[PAD], vocabulary[1], vocabulary[2] = "<pad>", "<unk>", "</s>"
    for word, place in named.items():
        vocabulary[place] = word
    made = tokenizer(vocabulary)
    made.add_special_tokens({"additional_special_tokens": list(named)})
    return made


def grids_of(family, inputs):
    """What a method is shown, after `generate()` has taken the inputs and found them to fit the features."""
    first, forward = shown(build(family), inputs)[0], shown(build(family), inputs, "forward")[0]
    assert first.grids_known
    assert first.grids == forward.grids
    counts = visual(inputs).sum(-1).tolist()
    assert [sum(grid.length for grid in row) for row in first.grids] == counts
    for tokens in (first, forward):
        assert torch.equal(
            (tokens.grid >= 0).sum(-1), torch.tensor([sum(g.cells for g in row) for row in tokens.grids])
        )
    return first


def test_llava_next():
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        ),
        tokenizer=words(**{"<image>": IMAGE}),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    images = [picture(*shape) for shape in SHAPES]
    text = ["w3 <image> w4 <image> w5", "<image> w6", "w7 <image> <image> w8"]
    inputs = processor(images=images, text=text, return_tensors="pt", padding=True)
    tokens = grids_of("llava_next", inputs)
    assert [len(row) for row in tokens.grids] == [4, 2, 4]
    assert all(row[::2] == (SIDE,) * (len(row) // 2) for row in tokens.grids)
    assert [(grid.width, grid.height) for row in tokens.grids for grid in row[1::2]] == [
        (8, 8),  # 64 x 64 pixels, a token for each 8 of them
        (4, 8),  # 25.6 x 64 of 32 x 64: 3.2 tokens of 4, and half of the rest is less than one
        (6, 4),  # 52.8 x 32 of 64 x 32: 6 tokens of 8, one padding on either side
        (8, 2),  # 64 x 22 of 64 x 32
        (8, 2),  # 64 x 19.2 of 64 x 32
    ]
    assert [int(row.max()) + 1 for row in tokens.image] == [2, 1, 2]


CROP_WORDS = {
    "<fake_token_around_image>": AROUND,
    "<global-img>": WHOLE,
    "<image>": IMAGE,
    "<end_of_utterance>": 98,
    "\n": LINE,
    **{f"<row_{row + 1}_col_{column + 1}>": FIRST_CROP + 4 * row + column for row in range(4) for column in range(4)},
}
CROPPED = dict(size={"longest_edge": 128}, max_image_size={"longest_edge": 32}, return_row_col_info=True)


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
@pytest.mark.parametrize("split", [True, False])
def test_idefics3_and_smolvlm(family, split):
    kind = "Idefics3ImageProcessorPil" if family == "idefics3" else "SmolVLMImageProcessorPil"
    cutter = getattr(transformers, kind)(**CROPPED, do_image_splitting=split)
    images = [
        [picture(*shape) for shape in SHAPES[:2]],
        [picture(*SHAPES[2])],
        [picture(*shape) for shape in SHAPES[3:]],
    ]
    text = ["w3 <image> w4 <image> w5", "<image> w6", "w7 <image><image> w8"]
    pixels = cutter(images, return_tensors="pt")
    rows, columns = pixels.pop("rows"), pixels.pop("cols")
    crops = [[down * across + 1 for down, across in zip(*one, strict=True)] for one in zip(rows, columns, strict=True)]
    if family == "idefics3":
        processor = transformers.Idefics3Processor(cutter, words(**CROP_WORDS), image_seq_len=16)
        inputs = processor(images=images, text=text, return_tensors="pt", padding=True)
    else:  # whose processor wants torchvision, for videos; what it writes into the text it lets us ask for
        filled = []
        for sample, *sizes in zip(text, rows, columns, strict=True):
            parts = sample.split("<image>")
            made = [
                get_image_prompt_string(down, across, 16, "<fake_token_around_image>", "<image>", "<global-img>")
                for down, across in zip(*sizes, strict=True)
            ]
            filled.append("".join(a + b for a, b in zip(parts, [*made, ""], strict=True)))
        inputs = {**words(**CROP_WORDS)(filled, return_tensors="pt", padding=True), **pixels}
        inputs.pop("token_type_ids", None)
    tokens = grids_of(family, inputs)
    assert tokens.grids == tuple(
        tuple(grid for cut in zip(*one, strict=True) for grid in (*crop_grids(*cut), SIDE))
        for one in zip(rows, columns, strict=True)
    )
    for sample, row in zip(crops, tokens.image, strict=True):
        assert torch.bincount(row[row >= 0]).tolist() == [16 * number for number in sample]
    assert any(number > 1 for sample in crops for number in sample) == split


def test_internvl():
    cutter = transformers.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4
    )
    pixels = cutter([picture(*shape) for shape in SHAPES], return_tensors="pt")
    tiles = pixels.pop("num_patches").tolist()
    # its processor wants torchvision, for videos
    runs = [f"<img>{'<IMG_CONTEXT>' * 16 * number}</img>" for number in tiles]
    text = [f"w3 {runs[0]} w4 {runs[1]}", f"{runs[2]} w5", f"w6 {runs[3]}{runs[4]} w7"]
    named = {"<img>": VISION_START, "</img>": VISION_END, "<IMG_CONTEXT>": IMAGE}
    inputs = {**words(**named)(text, return_tensors="pt", padding=True), **pixels}
    inputs.pop("token_type_ids", None)
    tokens = grids_of("internvl", inputs)
    samples = [tiles[:2], tiles[2:3], tiles[3:]]
    assert len(set(tiles)) > 1
    assert tokens.grids == tuple(
        tuple(grid for number in sample for grid in (*(PART,) * (number - 1), SIDE)) for sample in samples
    )
    for sample, row in zip(samples, tokens.image, strict=True):
        assert torch.bincount(row[row >= 0]).tolist() == [16 * number for number in sample]


@pytest.mark.parametrize(
    "family", [one for one in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5") if one in BUILDERS]
)
def test_qwen(tmp_path, family):
    named = {
        "<|vision_start|>": VISION_START,
        "<|vision_end|>": VISION_END,
        "<|image_pad|>": IMAGE,
        "<|video_pad|>": VIDEO,
    }
    kind = "qwen3_vl" if family.startswith("qwen3") else family  # whose processor they share; their tokenizers differ
    processor = load_processor(qwen_folder(tmp_path, kind, "new", words(**named), patch=4))
    batch = [messages(picture(48, 16), picture(16, 40, 1)), messages(picture(24, 24, 2)), messages(text="w3")]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "padding": True}
    tokens = grids_of(family, processor.apply_chat_template(batch, add_generation_prompt=True, **options))
    assert tokens.grids == ((Grid(2, 6), Grid(5, 2)), (Grid(3, 3),), ())
