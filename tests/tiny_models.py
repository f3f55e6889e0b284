"""Tiny random-weight models of the real classes, built from configs, and inputs for them made by hand."""

from __future__ import annotations

import functools

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

IMAGE, VIDEO, VISION_START, VISION_END, PAD = 90, 91, 92, 93, 0
LAYERS = 6
TEXT = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=128,
    max_position_embeddings=2048,
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=None,
)
MROPE = dict(rope_type="default", mrope_section=[2, 3, 3], rope_theta=10000.0)
QWEN_VISION = dict(
    depth=3,
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    patch_size=4,
    spatial_merge_size=2,
    temporal_patch_size=2,
    in_channels=3,
    in_chans=3,
    out_hidden_size=64,
)
QWEN_IDS = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END
)


def _llava() -> tuple[type[PreTrainedModel], object]:
    vision = dict(
        model_type="clip_vision_model",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=32,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=dict(model_type="llama", **TEXT),
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
    )
    return LlavaForConditionalGeneration, config


def _qwen2_5_vl() -> tuple[type[PreTrainedModel], object]:
    vision = dict(QWEN_VISION, window_size=16, fullatt_block_indexes=[1])
    return Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(
        vision_config=vision, text_config=dict(TEXT, rope_parameters=MROPE), **QWEN_IDS
    )


def _qwen3_vl() -> tuple[type[PreTrainedModel], object]:
    vision = dict(QWEN_VISION, deepstack_visual_indexes=[0, 1, 2], num_position_embeddings=64)
    return Qwen3VLForConditionalGeneration, Qwen3VLConfig(
        vision_config=vision, text_config=dict(TEXT, head_dim=16, rope_parameters=MROPE), **QWEN_IDS
    )


BUILDERS = {"llava": _llava, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}


@functools.cache
def build(family: str, attention: str = "sdpa") -> PreTrainedModel:
    """One shared model a family and backend; weights large enough that attention is not uniform."""
    cls, config = BUILDERS[family]()
    torch.manual_seed(0)
    model = cls._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else 0.12)
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


ONE, TWO, NONE = [4, None, 5], [3, None, 2, None, 4], [9]
LAYOUTS = {
    "one image": [ONE],
    "two images": [TWO],
    "no image": [NONE],
    "ragged": [ONE, TWO, [6, None, 3]],
    "ragged with text only": [TWO, NONE, ONE],
    "adjacent images": [[3, None, None, 4]],
}


def inputs(family: str, layout: str | list, seed: int = 1) -> dict[str, torch.Tensor]:
    """Model inputs, left padded.

    Parameters
    ----------
    layout
        A name in LAYOUTS, or for each sample its segments: a number of text tokens, or None for an image. Images of
        the Qwen families differ in size.
    """
    rows = LAYOUTS[layout] if isinstance(layout, str) else layout
    generator = torch.Generator().manual_seed(seed)
    qwen = family.startswith("qwen")
    pixels, grids, sequences = [], [], []
    for row in rows:
        ids: list[int] = []
        for segment in row:
            if segment is not None:
                ids += torch.randint(2, 80, (segment,), generator=generator).tolist()
            elif qwen:
                grid = [1, 8, 12] if len(grids) % 2 == 0 else [1, 12, 12]
                grids.append(grid)
                pixels.append(torch.randn(grid[1] * grid[2], 3 * 2 * 4 * 4, generator=generator))
                ids += [VISION_START, *[IMAGE] * (grid[1] * grid[2] // 4), VISION_END]
            else:
                pixels.append(torch.randn(1, 3, 32, 32, generator=generator))
                ids += [IMAGE] * 16
        sequences.append(ids)
    length = max(map(len, sequences))
    batch = {
        "input_ids": torch.tensor([[PAD] * (length - len(ids)) + ids for ids in sequences]),
        "attention_mask": torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in sequences]),
    }
    if pixels:
        batch["pixel_values"] = torch.cat(pixels)
    if qwen:
        batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).int()
        if grids:
            batch["image_grid_thw"] = torch.tensor(grids)
    return batch


def single(family: str, layout: str, row: int) -> dict[str, torch.Tensor]:
    """Sample `row` of `inputs(family, layout)` alone, without its padding."""
    whole = inputs(family, layout)
    before = sum(segment is None for r in LAYOUTS[layout][:row] for segment in r)
    mine = sum(segment is None for segment in LAYOUTS[layout][row])
    real = whole["attention_mask"][row].bool()
    alone = {
        name: whole[name][row : row + 1, real]
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
        if name in whole
    }
    if mine and family.startswith("qwen"):
        sizes = whole["image_grid_thw"].prod(-1).tolist()
        alone["image_grid_thw"] = whole["image_grid_thw"][before : before + mine]
        alone["pixel_values"] = whole["pixel_values"][sum(sizes[:before]) : sum(sizes[: before + mine])]
    elif mine:
        alone["pixel_values"] = whole["pixel_values"][before : before + mine]
    return alone


def generate(model: PreTrainedModel, batch: dict[str, torch.Tensor], steps: int = 6, **options):
    """Greedy generation of `steps` tokens with the logits and the cache."""
    options = {"do_sample": False, "suppress_tokens": [IMAGE, VIDEO], **options}
    with torch.no_grad():
        return model.generate(
            **batch, max_new_tokens=steps, output_logits=True, return_dict_in_generate=True, **options
        )
