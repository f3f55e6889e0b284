"""Tiny models of the newest families, by their classes' names: an older transformers may not have them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import transformers

from foveate.families import Grid
from tests.models.images import FILM_END, FILM_START, IMAGE, VIDEO, VISION_END, VISION_START, Picture
from tests.models.sizes import MROPE, QWEN_IDS, QWEN_VISION, TEXT

EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
VISION = dict(QWEN_VISION, num_position_embeddings=64)


def _qwen3_vl_moe() -> dict:
    return dict(
        vision_config=dict(VISION, deepstack_visual_indexes=[0, 1, 2]),
        text_config=dict(TEXT, **EXPERTS, head_dim=16, rope_parameters=MROPE),
        **QWEN_IDS,
    )


# attention where the methods of the laws read it, most of all: behind 1, 3 and 4
LINEAR = dict(
    layer_types=[f"{kind}_attention" for kind in ("linear", "full", "linear", "full", "full", "linear")],
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    head_dim=16,
    rope_parameters=dict(MROPE, partial_rotary_factor=1.0),
)


def _qwen3_5() -> dict:
    return dict(vision_config=VISION, text_config=dict(TEXT, **LINEAR), **QWEN_IDS)


def _qwen3_5_moe() -> dict:
    text = dict(TEXT, **LINEAR, **EXPERTS, shared_expert_intermediate_size=32)
    return dict(vision_config=VISION, text_config=text, **QWEN_IDS)


GLM_TEXT = dict(TEXT, head_dim=16, rope_parameters=dict(MROPE, partial_rotary_factor=1.0))
GLM_VISION = dict(
    depth=3,
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    image_size=32,
    patch_size=4,
    spatial_merge_size=2,
    temporal_patch_size=2,
    in_channels=3,
    out_hidden_size=64,
)
GLM_IDS = dict(
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    image_start_token_id=VISION_START,
    image_end_token_id=VISION_END,
    video_start_token_id=FILM_START,
    video_end_token_id=FILM_END,
)


def _glm() -> dict:
    return dict(vision_config=GLM_VISION, text_config=dict(GLM_TEXT), **GLM_IDS)


def _glm46v() -> dict:
    kinds = {"text_config": "glm4v_text", "vision_config": "glm4v_vision"}
    return {**_glm(), **{part: dict(_glm()[part], model_type=kind) for part, kind in kinds.items()}}


def _glm4v_moe() -> dict:
    experts = dict(
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_shared_experts=1,
        first_k_dense_replace=1,
    )
    return dict(vision_config=GLM_VISION, text_config=dict(GLM_TEXT, **experts), **GLM_IDS)


def _gemma4() -> dict:
    layers = [f"{kind}_attention" for kind in ("sliding", "sliding", "full") * 2]
    return dict(
        vision_config=dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=8,
            patch_size=4,
            pooling_kernel_size=2,
            position_embedding_size=32,
        ),
        text_config=dict(
            TEXT,
            head_dim=16,
            global_head_dim=32,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            hidden_size_per_layer_input=0,
            use_bidirectional_attention="vision",
            layer_types=layers,
            sliding_window=12,
        ),
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=127,
    )


def gemma4_picture(number: int, generator: torch.Generator) -> Picture:
    """Pixels of 4 x 4 patches, in 144 places; those without a patch are padding."""
    high, wide = [(8, 12), (12, 12)][number % 2]
    pixels = torch.zeros(1, 144, 3 * 4 * 4)
    pixels[:, : high * wide] = torch.rand(1, high * wide, 3 * 4 * 4, generator=generator)
    ids = [VISION_START, *[IMAGE] * (high * wide // 4), VISION_END]
    return Picture(ids, pixels, (Grid(high // 2, wide // 2),), (high, wide))


def gemma4_inputs(images: Sequence[Picture]) -> dict[str, torch.Tensor]:
    """Pixels, and (x, y) of each patch."""
    places = torch.full((len(images), 144, 2), -1)
    for image, place in zip(images, places, strict=True):
        high, wide = image.size
        number = torch.arange(high * wide)
        place[: high * wide] = torch.stack([number % wide, number // wide], -1)
    return {"pixel_values": torch.cat([image.pixels for image in images]), "image_position_ids": places}


# model type: class of the model, class of its config, the config's arguments
NEWER: dict[str, tuple[str, str, Callable[[], dict]]] = {
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeConfig", _qwen3_vl_moe),
    "qwen3_5": ("Qwen3_5ForConditionalGeneration", "Qwen3_5Config", _qwen3_5),
    "qwen3_5_moe": ("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeConfig", _qwen3_5_moe),
    "glm4v": ("Glm4vForConditionalGeneration", "Glm4vConfig", _glm),
    "glm4v_moe": ("Glm4vMoeForConditionalGeneration", "Glm4vMoeConfig", _glm4v_moe),
    "glm46v": ("Glm46VForConditionalGeneration", "Glm46VConfig", _glm46v),
    "gemma4": ("Gemma4ForConditionalGeneration", "Gemma4Config", _gemma4),
    "glm_ocr": ("GlmOcrForConditionalGeneration", "GlmOcrConfig", _glm),
}
# families that this transformers is too old for
ABSENT = {family for family, (model, *_) in NEWER.items() if not hasattr(transformers, model)}
if not hasattr(transformers.cache_utils, "LinearAttentionLayer"):
    ABSENT |= {"qwen3_5", "qwen3_5_moe"}  # there, but with a cache that is no `Cache`
NEWER = {family: made for family, made in NEWER.items() if family not in ABSENT}
NEWER_WITH_VIDEOS = tuple(family for family in ("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe") if family in NEWER)
# their hooks meet the same code as those of a relative: fewer laws
RELATIVES = tuple(
    family for family in ("qwen3_vl_moe", "qwen3_5_moe", "glm4v_moe", "glm46v", "glm_ocr") if family in NEWER
)
# no features of the vision encoder, and inside `generate()` an unknown layout
UNSEEN = tuple(family for family in ("gemma4",) if family in NEWER)
WITH_STATES = tuple(family for family in ("qwen3_5", "qwen3_5_moe") if family in NEWER)  # not in every layer attention


def newer(family: str) -> tuple[type[transformers.PreTrainedModel], object]:
    """Class and config of the tiny model."""
    model, config, settings = NEWER[family]
    return getattr(transformers, model), getattr(transformers, config)(**settings())
