"""A random LLaVA with a processor of its own, in a folder, and questions for it; no network, no training."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from foveate.measure.eval.suites import Example
from tests.models.build import IMAGE, build
from tests.models.sizes import PAD

VISUAL = 16  # visual tokens an image of this model
GRID = 4
WORDS = ["what", "is", "this", "where", "colour", "how", "many", "?", "USER:", "ASSISTANT:", "red", "blue"]


def tokenizer() -> PreTrainedTokenizerFast:
    """One id a word; the ids of the special tokens are those of the model."""
    names = {PAD: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", IMAGE: "<image>"}
    free = [number for number in range(4, 128) if number not in names]
    names |= dict(zip(free, WORDS + [f"word{number}" for number in range(len(free) - len(WORDS))], strict=True))
    words = Tokenizer(models.WordLevel({name: number for number, name in names.items()}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def save_llava(folder: Path) -> Path:
    """Write model and processor as `save_pretrained` does."""
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size=size, do_center_crop=False)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    build("llava").save_pretrained(folder)
    return folder


def picture(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    """Noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def questions(samples: int, seed: int) -> list[Example]:
    """A suite of two tasks; the answers are words that the random model may well say."""
    return [
        Example(
            index,
            ["first", "second"][index % 2],
            picture(1000 * seed + index),
            ["what is this ?", "where is this colour ?"][index % 2],
            "word1",
            torch.tensor([index % VISUAL, (index + 3) % VISUAL]),
        )
        for index in range(samples)
    ]
