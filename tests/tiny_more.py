"""Tiny models and pictures of LLaVA's and Gemma's relatives; the rest of them is in tiny_models and tiny_pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import transformers
from torch import Generator, Tensor
from transformers import PreTrainedModel

from foveate.families import Grid
from tests import tiny_pictures as base
from tests.tiny_pictures import IMAGE, VIDEO, Picture

SQUARE_VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32)
SIGLIP = dict(SQUARE_VISION, model_type="siglip_vision_model", patch_size=8, vision_use_head=False)


def _llava_onevision(text: dict) -> dict:
    return dict(
        vision_config=SIGLIP,
        text_config=dict(text, model_type="qwen2"),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )


# family: what the classes' names begin with, and the config's arguments
MADE: dict[str, tuple[str, Callable[[dict], dict]]] = {
    "llava_onevision": ("LlavaOnevision", _llava_onevision),
}
MORE = tuple(family for family, (name, _) in MADE.items() if hasattr(transformers, f"{name}Config"))
MORE_WITH_VIDEOS = tuple(family for family in ("llava_onevision",) if family in MORE)
# where the vision encoder's features cannot be lined up with the visual tokens
AVERAGED = (("llava_onevision", "video"),)


def more(family: str, text: dict) -> tuple[type[PreTrainedModel], object]:
    """Class and config of the tiny model around a text model of these settings."""
    name, settings = MADE[family]
    return (
        getattr(transformers, f"{name}ForConditionalGeneration"),
        getattr(transformers, f"{name}Config")(**settings(text)),
    )


def more_picture(family: str, number: int, generator: Generator, several: bool) -> Picture:
    """The image `number` of a batch, `several` in its sample."""
    alone = base.picture("llava_next", number, generator)
    if not several:
        return alone
    return Picture([IMAGE] * 17, alone.pixels[:1], (Grid(4, 4, behind=1),), alone.size)


def more_film(family: str, generator: Generator) -> Picture:
    """A video of two frames."""
    frames = torch.randn(1, 2, 3, 32, 32, generator=generator)
    return Picture([VIDEO] * 9, frames, (Grid(2, 2), Grid(2, 2, behind=1)), video=True)


def more_inputs(family: str, samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    """What the models take beside the ids, from the images and videos of each sample."""
    images = [one for sample in samples for one in sample if not one.video]
    videos = [one for sample in samples for one in sample if one.video]
    batch = {}
    if images:
        batch["pixel_values"] = torch.nn.utils.rnn.pad_sequence([one.pixels for one in images], batch_first=True)
        batch["image_sizes"] = torch.tensor([one.size for one in images])
        if family == "llava_onevision":
            counts = [sum(not one.video for one in sample) for sample in samples]
            batch["batch_num_images"] = torch.tensor([count for count in counts if count])
    if videos:
        batch["pixel_values_videos"] = torch.cat([one.pixels for one in videos])
    return batch
