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
BREAK, END = 88, 89  # behind a row of tokens, and behind the last
ROWS = [(3, 5), (4, 4), (2, 6)]  # rows and columns of tokens
PIXTRAL = dict(SQUARE_VISION, model_type="pixtral", head_dim=8, patch_size=4, image_size=64)
SIGLIP = dict(SQUARE_VISION, model_type="siglip_vision_model", patch_size=8, vision_use_head=False)


def _llava_onevision(text: dict) -> dict:
    return dict(
        vision_config=SIGLIP,
        text_config=dict(text, model_type="qwen2"),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )


def _pixtral(text: dict) -> dict:
    return dict(
        vision_config=PIXTRAL,
        text_config=dict(text, model_type="mistral", sliding_window=None),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def _mistral3(text: dict) -> dict:
    return dict(
        vision_config=PIXTRAL,
        text_config=dict(text, model_type="mistral", sliding_window=None),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        spatial_merge_size=2,
    )


# family: what the classes' names begin with, and the config's arguments
MADE: dict[str, tuple[str, Callable[[dict], dict]]] = {
    "llava_onevision": ("LlavaOnevision", _llava_onevision),
    "mistral3": ("Mistral3", _mistral3),
    "pixtral": ("Llava", _pixtral),
}
MORE = tuple(family for family, (name, _) in MADE.items() if hasattr(transformers, f"{name}Config"))
MORE_WITH_VIDEOS = tuple(family for family in ("llava_onevision",) if family in MORE)
VARIANTS = ("pixtral",)  # another tiny model of a family
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
    if family in ("mistral3", "pixtral"):
        rows, columns = ROWS[number % 3]
        patch = 8 if family == "mistral3" else 4
        pixels = torch.randn(3, patch * rows, patch * columns, generator=generator)
        ids = ([IMAGE] * columns + [BREAK]) * rows
        return Picture([*ids[:-1], END], pixels, (Grid(rows, columns),), (patch * rows, patch * columns))
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
    if images and family in ("mistral3", "pixtral"):
        high, wide = (max(one.size[axis] for one in images) for axis in (0, 1))
        padded = [
            torch.nn.functional.pad(one.pixels, (0, wide - one.size[1], 0, high - one.size[0])) for one in images
        ]
        batch["pixel_values"] = torch.stack(padded)
        batch["image_sizes"] = torch.tensor([one.size for one in images])
    elif images:
        batch["pixel_values"] = torch.nn.utils.rnn.pad_sequence([one.pixels for one in images], batch_first=True)
        batch["image_sizes"] = torch.tensor([one.size for one in images])
        if family == "llava_onevision":
            counts = [sum(not one.video for one in sample) for sample in samples]
            batch["batch_num_images"] = torch.tensor([count for count in counts if count])
    if videos:
        batch["pixel_values_videos"] = torch.cat([one.pixels for one in videos])
    return batch
