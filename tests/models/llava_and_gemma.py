"""Tiny models and pictures of LLaVA's and Gemma's relatives; the rest of them is in tiny_models and tiny_pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Generator, Tensor
from transformers import PreTrainedModel

from foveate.families import Grid
from tests.models import images as base
from tests.models.images import IMAGE, VIDEO, VISION_END, VISION_START, Picture
from tests.models.sizes import CROP_VISION

BREAK, END = 88, 89  # behind a row of tokens, and behind the last
ROWS = [(3, 5), (4, 4), (2, 6)]  # rows and columns of tokens
PIXTRAL = dict(CROP_VISION, model_type="pixtral", head_dim=8, patch_size=4, image_size=64)
SMALL_PATCHES = dict(CROP_VISION, model_type="siglip_vision_model", patch_size=4, vision_use_head=False)
WINDOWS = dict(layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2, sliding_window=12)
SIGLIP = dict(CROP_VISION, model_type="siglip_vision_model", patch_size=8, vision_use_head=False)


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


def _paligemma(text: dict) -> dict:
    text = dict(text, model_type="gemma", head_dim=16)
    return dict(vision_config=SIGLIP, text_config=text, image_token_index=IMAGE, projection_dim=64, hidden_size=64)


def _paligemma2(text: dict) -> dict:
    text = dict(text, **WINDOWS, model_type="gemma2", head_dim=16, query_pre_attn_scalar=16)
    return dict(vision_config=SIGLIP, text_config=text, image_token_index=IMAGE, projection_dim=64, hidden_size=64)


def _gemma3(text: dict) -> dict:
    return dict(
        vision_config=SMALL_PATCHES,
        text_config=dict(text, **WINDOWS, head_dim=16, query_pre_attn_scalar=16),
        image_token_index=IMAGE,
        boi_token_index=VISION_START,
        eoi_token_index=VISION_END,
        mm_tokens_per_image=16,
    )


def _llava_next_video(text: dict) -> dict:
    return dict(
        vision_config=dict(CROP_VISION, model_type="clip_vision_model", patch_size=8, projection_dim=32),
        text_config=dict(text, model_type="llama"),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )


def _vipllava(text: dict) -> dict:
    clip = dict(CROP_VISION, model_type="clip_vision_model", patch_size=8, projection_dim=32)
    text = dict(text, model_type="llama")
    layers = dict(vision_feature_layer=-2, vision_feature_layers=-2)  # its name in newer and in older releases
    return dict(vision_config=clip, text_config=text, image_token_index=IMAGE, **layers)


def _deepseek_vl(text: dict) -> dict:
    text = dict(text, model_type="llama")
    return dict(vision_config=SIGLIP, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False)


def _aya_vision(text: dict) -> dict:
    text = dict(text, **WINDOWS, model_type="cohere2", logit_scale=1.0)
    ids = dict(image_token_index=IMAGE, vision_feature_layer=-1, tie_word_embeddings=False)
    return dict(vision_config=SMALL_PATCHES, text_config=text, alignment_intermediate_size=48, **ids)


def _cohere2_vision(text: dict) -> dict:
    text = dict(text, **WINDOWS, model_type="cohere2", logit_scale=1.0)
    ids = dict(image_token_id=IMAGE, tie_word_embeddings=False)
    return dict(vision_config=SMALL_PATCHES, text_config=text, alignment_intermediate_size=48, **ids)


# family: what the classes' names begin with, and the config's arguments
MADE: dict[str, tuple[str, Callable[[dict], dict]]] = {
    "llava_onevision": ("LlavaOnevision", _llava_onevision),
    "llava_next_video": ("LlavaNextVideo", _llava_next_video),
    "mistral3": ("Mistral3", _mistral3),
    "pixtral": ("Llava", _pixtral),
    "vipllava": ("VipLlava", _vipllava),
    "deepseek_vl": ("DeepseekVL", _deepseek_vl),
    "aya_vision": ("AyaVision", _aya_vision),
    "cohere2_vision": ("Cohere2Vision", _cohere2_vision),
    "paligemma": ("PaliGemma", _paligemma),
    "paligemma2": ("PaliGemma", _paligemma2),
    "gemma3": ("Gemma3", _gemma3),
}


def _there(family: str) -> bool:
    """Whether this transformers has the classes, and can make their configs (5.4.0 cannot make Cohere 2's)."""
    try:
        getattr(transformers, f"{MADE[family][0]}Config")
        return family not in ("aya_vision", "cohere2_vision") or bool(transformers.Cohere2Config())
    except (AttributeError, StrictDataclassError):
        return False


MORE = tuple(family for family in MADE if _there(family))
MORE_ABSENT = {*MADE} - {*MORE}
MORE_WITH_VIDEOS = tuple(family for family in ("llava_onevision", "llava_next_video") if family in MORE)
VARIANTS = ("pixtral", "paligemma2")  # another tiny model of a family
SQUARES = ("paligemma", "paligemma2", "gemma3", "vipllava", "deepseek_vl")  # each image in as many tokens
EAGER_ONLY = ("paligemma2",)  # Gemma 2 caps its attention's logits, which sdpa cannot
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
    if family in ("aya_vision", "cohere2_vision"):
        tiles = base.TILES[number % 3]
        one = [base.FIRST_CROP, *[IMAGE] * 16] if family == "aya_vision" else [*[IMAGE] * 16, base.LINE]
        ids = [VISION_START, *one * tiles, VISION_END]
        if family == "aya_vision":
            ids[-18] = base.WHOLE
        return Picture(
            ids, torch.randn(tiles, 3, 32, 32, generator=generator), (base.PART,) * (tiles - 1) + (base.SIDE,)
        )
    if family in SQUARES:
        ids = [VISION_START, *[IMAGE] * 16, VISION_END] if family == "gemma3" else [IMAGE] * 16
        return Picture(ids, torch.randn(1, 3, 32, 32, generator=generator), (Grid(4, 4),))
    alone = base.picture("llava_next", number, generator)
    if family == "llava_next_video" or not several:
        return alone
    return Picture([IMAGE] * 17, alone.pixels[:1], (Grid(4, 4, after=1),), alone.size)


def more_film(family: str, generator: Generator) -> Picture:
    """A video of two frames."""
    frames = torch.randn(1, 2, 3, 32, 32, generator=generator)
    if family == "llava_next_video":
        return Picture([VIDEO] * 8, frames, (Grid(2, 2), Grid(2, 2)), video=True)
    return Picture([VIDEO] * 9, frames, (Grid(2, 2), Grid(2, 2, after=1)), video=True)


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
    elif images and (family in SQUARES or family in ("aya_vision", "cohere2_vision")):
        batch["pixel_values"] = torch.cat([one.pixels for one in images])
    elif images:
        batch["pixel_values"] = torch.nn.utils.rnn.pad_sequence([one.pixels for one in images], batch_first=True)
        batch["image_sizes"] = torch.tensor([one.size for one in images])
        if family == "llava_onevision":
            counts = [sum(not one.video for one in sample) for sample in samples]
            batch["batch_num_images"] = torch.tensor([count for count in counts if count])
    if videos:
        batch["pixel_values_videos"] = torch.cat([one.pixels for one in videos])
    return batch


def more_types(family: str, ids: Tensor) -> dict[str, Tensor]:
    """What some models want to know of each token, (B, L)."""
    if family in ("paligemma", "paligemma2"):  # 1 is what is to be learnt
        return {"token_type_ids": torch.zeros_like(ids)}
    return {"token_type_ids": (ids == IMAGE).long()} if family == "gemma3" else {}
