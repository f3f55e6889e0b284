"""Families whose images are codes of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from foveate.families import Grid
from tests.models.base import TinyFamily
from tests.models.images import IMAGE, LINE, VISION_END, VISION_START, WHOLE, Picture
from tests.models.sizes import TEXT

ROWS = [(3, 5), (4, 4), (2, 6)]  # rows and columns of codes
CODES = 64

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)


def _apertus() -> dict:
    """Text up to 128, then the codes of images, then those of sound; the head writes text only."""
    return dict(
        vision_config=dict(
            codebook_size=CODES,
            embed_dim=16,
            latent_channels=16,
            base_channels=32,
            channel_multiplier=[1, 1, 2],
            num_res_blocks=1,
            attn_resolutions=[8],
            resolution=32,
        ),
        audio_config=dict(
            model_type="wavtokenizer_encoder",
            hidden_size=16,
            num_filters=2,
            codebook_size=32,
            codebook_dim=16,
        ),
        text_config=dict(
            TEXT,
            vocab_size=128 + CODES + 32,
            output_vocab_size=128,
            rope_parameters=dict(LLAMA3, rope_theta=10000.0, original_max_position_embeddings=512),
        ),
        image_token_id=IMAGE,
        audio_token_id=127,
        image_token_offset=128,
        audio_token_offset=128 + CODES,
    )


def _picture(number: int, generator: Generator, several: bool) -> Picture:
    """Its rows and columns are named before it; four pixels make a code."""
    high, wide = ROWS[number % 3]
    rows = [*[*[IMAGE] * wide, LINE] * high][:-1]
    pixels = torch.randn(3, 4 * high, 4 * wide, generator=generator)
    return Picture(
        [VISION_START, high, 2, wide, WHOLE, *rows, VISION_END], pixels, (Grid(high, wide),), (4 * high, 4 * wide)
    )


def _inputs(samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    """Pixels padded to a common size, and their own sizes."""
    images = [one for sample in samples for one in sample]
    if not images:
        return {}
    high, wide = (max(one.size[axis] for one in images) for axis in (0, 1))
    padded = [torch.nn.functional.pad(one.pixels, (0, wide - one.size[1], 0, high - one.size[0])) for one in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor([one.size for one in images])}


FAMILIES = {
    "apertus1p5": TinyFamily(
        model="Apertus1p5ForConditionalGeneration",
        config="Apertus1p5Config",
        settings=_apertus,
        picture=_picture,
        inputs=_inputs,
        relative=True,
        unseen=True,
        placed=True,
        decoder_only=True,
    ),
}
