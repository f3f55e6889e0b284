"""A tiny Llama 4: layers that attend in chunks of 12 tokens, and two without rotary positions that see everything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.models.llama4 import modeling_llama4

from tests.models.base import TinyFamily
from tests.models.images import AROUND, IMAGE, LINE, SIDE, VISION_END, VISION_START, WHOLE, Picture, crop_grids
from tests.models.sizes import CROP_VISION, TEXT

TILES = [(1, 2), (0, 0), (2, 1)]  # rows and columns; none where the image is not cut


def _settings() -> dict:
    text = dict(
        TEXT,
        head_dim=16,
        intermediate_size_mlp=96,
        num_local_experts=4,
        moe_layers=[1, 3, 5],
        no_rope_layers=[1, 1, 0, 1, 0, 1],
        attention_chunk_size=12,
    )
    vision = dict(
        CROP_VISION,
        intermediate_size=32 * 4,  # of what the pixel shuffle makes, and of the encoder's MLPs
        patch_size=4,
        projector_input_dim=40,
        projector_output_dim=40,
        vision_output_dim=40,
    )
    return dict(vision_config=vision, text_config=text, image_token_index=IMAGE, boi_token_index=VISION_START)


def _picture(number: int, generator: torch.Generator, several: bool) -> Picture:
    """Tiles of 4 x 4 tokens, LINE between those of a row and AROUND behind each row, then the whole."""
    rows, columns = TILES[number % 3]
    ids = [VISION_START]
    for _ in range(rows):
        ids += [*([IMAGE] * 16 + [LINE]) * (columns - 1), *[IMAGE] * 16, AROUND]
    ids += [WHOLE, *[IMAGE] * 16, VISION_END]
    pixels = torch.randn(rows * columns + 1, 3, 32, 32, generator=generator)
    return Picture(ids, pixels, (*crop_grids(rows, columns), SIDE))


def _inputs(samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    images = [one.pixels for sample in samples for one in sample]
    return {"pixel_values": torch.cat(images)} if images else {}


def _runs() -> bool:
    """Of 5.24.0 the model asks its language model's output for a field that it does not have, whatever it is given."""
    names = (f"{name}CausalLMOutputWithPast" for name in ("Llama4", "Moe"))
    ours, inner = (getattr(getattr(modeling_llama4, name, None), "__dataclass_fields__", {}) for name in names)
    return "image_outputs" not in ours or "image_outputs" in inner


FAMILIES = {
    "llama4": TinyFamily(
        "Llama4ForConditionalGeneration", "Llama4Config", _settings, picture=_picture, inputs=_inputs, needs=_runs
    )
}
