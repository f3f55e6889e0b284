"""Readers of documents and small models: PaddleOCR-VL, LightOnOCR, GOT-OCR 2, Ovis2, LFM2-VL, MiniCPM-V."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Generator, Tensor, nn

from foveate.families import Grid
from foveate.families.grids import WHOLE as WHOLE_IMAGE
from tests.models.base import TinyFamily
from tests.models.images import (
    CROPS,
    FIRST_CROP,
    IMAGE,
    LINE,
    PART,
    QWEN_SIZES,
    SIDE,
    TILES,
    VIDEO,
    VISION_END,
    VISION_START,
    Picture,
    crop_grids,
)
from tests.models.sizes import CROP_VISION, MROPE, QWEN_IDS, TEXT

CHANNELS = CROP_VISION["hidden_size"]
Samples = Sequence[Sequence[Picture]]


def _replace(module: nn.Module, make: Callable[[Any], Any]) -> Any:
    """A hook that puts what `make` makes of a module's first argument in the place of its output."""
    return module.register_forward_hook(lambda _, args, out: make(args[0]))


def _pass_on(*modules: nn.Module) -> list[Any]:
    return [_replace(module, lambda given: given) for module in modules]


def _fill(features: Tensor, width: int = TEXT["hidden_size"]) -> Tensor:
    return torch.nn.functional.pad(features, (0, width - features.shape[-1]))


def _mean_of_parts(features: Tensor) -> Tensor:
    """The mean of patches that lie one behind the other in the last axis."""
    return features.unflatten(-1, (-1, CHANNELS)).mean(-2)


def _flat(samples: Samples) -> list[Picture]:
    return [one for sample in samples for one in sample]


def _pixels(samples: Samples) -> dict[str, Tensor]:
    images = _flat(samples)
    return {"pixel_values": torch.cat([image.pixels for image in images])} if images else {}


# -- PaddleOCR-VL: patches in raster order


def _paddleocr_vl() -> dict:
    vision = dict(CROP_VISION, patch_size=4, spatial_merge_size=2)
    return dict(vision_config=vision, text_config=dict(TEXT, head_dim=16, rope_parameters=MROPE), **QWEN_IDS)


def _config_fits() -> bool:
    """Whether this transformers can make the config (5.4.0 cannot)."""
    try:
        return bool(transformers.PaddleOCRVLConfig())
    except StrictDataclassError:
        return False


def _patches(number: int, generator: Generator, several: bool) -> Picture:
    high, wide = QWEN_SIZES[number % 2]
    ids = [VISION_START, *[IMAGE] * (high * wide // 4), VISION_END]
    pixels = torch.randn(high * wide, 3, 4, 4, generator=generator)
    return Picture(ids, pixels, (Grid(high // 2, wide // 2),), (1, high, wide))


def _with_grids(samples: Samples) -> dict[str, Tensor]:
    images = _flat(samples)
    return {**_pixels(samples), "image_grid_thw": torch.tensor([image.size for image in images])} if images else {}


def _average_paddleocr_vl(model: Any) -> list[Any]:
    projector = model.model.projector
    passed = model.model.visual.vision_model.post_layernorm, projector.pre_norm, projector.linear_1, projector.act
    return [*_pass_on(*passed), _replace(projector.linear_2, lambda given: _fill(_mean_of_parts(given)))]


def _image_types(ids: Tensor, video: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).int()}


# -- LightOnOCR: images of any size, padded to the largest

ROWS = [(3, 5), (4, 4), (2, 6)]  # rows and columns of tokens, of 8 x 8 pixels each


def _lighton_ocr() -> dict:
    vision = dict(CROP_VISION, model_type="pixtral", head_dim=8, patch_size=4, image_size=64)
    text = dict(TEXT, model_type="qwen3", head_dim=16)
    return dict(vision_config=vision, text_config=text, image_token_id=IMAGE, spatial_merge_size=2)


def _any_size(number: int, generator: Generator, several: bool) -> Picture:
    rows, columns = ROWS[number % 3]
    pixels = torch.randn(3, 8 * rows, 8 * columns, generator=generator)
    return Picture([IMAGE] * (rows * columns), pixels, (Grid(rows, columns),), (8 * rows, 8 * columns))


def _padded(samples: Samples) -> dict[str, Tensor]:
    images = _flat(samples)
    if not images:
        return {}
    high, wide = (max(one.size[axis] for one in images) for axis in (0, 1))
    pad = torch.nn.functional.pad
    pixels = [pad(one.pixels, (0, wide - one.size[1], 0, high - one.size[0])) for one in images]
    return {"pixel_values": torch.stack(pixels), "image_sizes": torch.tensor([one.size for one in images])}


def _average_lighton_ocr(model: Any) -> list[Any]:
    projector = model.model.vision_projection
    merge = projector.patch_merger.merging_layer  # the patches of a channel side by side
    return [
        *_pass_on(projector.norm, projector.act),
        _replace(merge, lambda given: given.unflatten(-1, (CHANNELS, -1)).mean(-1)),
        _replace(projector.linear_1, _fill),
        _replace(projector.linear_2, lambda given: given),
    ]


# -- GOT-OCR 2: tiles in one run; convolutions make one token of 4 x 4 patches


def _got_ocr2() -> dict:
    vision = dict(CROP_VISION, patch_size=2, output_channels=32, mlp_dim=48, window_size=6, global_attn_indexes=[1])
    return dict(vision_config=vision, text_config=dict(TEXT, model_type="qwen2"), image_token_index=IMAGE)


def _tiles(number: int, generator: Generator, several: bool) -> Picture:
    tiles = TILES[number % 3]
    ids = [VISION_START, *[IMAGE] * (16 * tiles), VISION_END]
    return Picture(ids, torch.randn(tiles, 3, 32, 32, generator=generator), (SIDE,) if tiles == 1 else (PART,) * tiles)


def _average_got_ocr2(model: Any) -> list[Any]:
    """Convolutions as the model has them, their weights such that they halve rows and columns and mix nothing else."""
    projector = model.model.multi_modal_projector

    def halve(conv: nn.Conv2d) -> Any:
        def mean(given: Tensor) -> Tensor:
            weight = torch.tensor([0.0, 0.5, 0.5]).outer(torch.tensor([0.0, 0.5, 0.5]))
            weight = weight.expand(given.shape[1], 1, 3, 3)
            half = torch.nn.functional.conv2d(
                given, weight, stride=conv.stride, padding=conv.padding, groups=given.shape[1]
            )
            return _fill(half.movedim(1, -1), conv.out_channels).movedim(-1, 1)

        return _replace(conv, mean)

    return [
        _replace(model.model.vision_tower.neck, lambda given: given.movedim(-1, 1)),
        halve(projector.conv_upsampler1),
        halve(projector.conv_upsampler2),
        *_pass_on(projector.multimodal_projector),
    ]


# -- Ovis2: the whole image, then tiles, each behind a token that tells its place

FIRST, RIGHT = 88, 89  # before the first tile, and before one to the right; LINE before one of the next row


def _ovis2() -> dict:
    vision = dict(CROP_VISION, patch_size=4, hidden_stride=2, vocab_size=50, num_visual_indicator_tokens=5)
    return dict(
        vision_config=vision,
        text_config=dict(TEXT, model_type="qwen2"),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[VISION_START, FIRST, RIGHT, LINE, VISION_END],
        hidden_size=64,
        vocab_size=128,
    )


def _marked_tiles(number: int, generator: Generator, several: bool) -> Picture:
    rows, columns = CROPS[number % 3]
    ids = [VISION_START, *[IMAGE] * 16, FIRST]
    for row in range(rows):
        for column in range(columns):
            ids += [RIGHT] * bool(column) + [LINE] * (bool(row) and not column) + [IMAGE] * 16
    pixels = torch.randn(rows * columns + 1, 3, 32, 32, generator=generator)
    return Picture([*ids, VISION_END], pixels, (SIDE, *crop_grids(rows, columns)))


def _average_ovis2(model: Any) -> list[Any]:
    tower, table = model.model.vision_tower, model.model.visual_embeddings_table

    def share(module: nn.Module, args: tuple, output: Any) -> None:
        output.pooler_output = _fill(_mean_of_parts(output.last_hidden_state), output.pooler_output.shape[-1])

    def look_up(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return _fill(args[0][..., :CHANNELS]) if args[0].is_floating_point() else output

    return [
        *_pass_on(tower.transformer.rms_norm),
        tower.register_forward_hook(share),
        table.register_forward_hook(look_up),
    ]


# -- LFM2-VL: tiles and a thumbnail, or one image; all padded to 64 patches

THUMBNAIL = 97
SHAPES = [((1, 2), (2, 6)), ((0, 0), (3, 5)), ((2, 1), (5, 3))]  # tiles, and tokens of the whole
# attention where the methods of the laws read it, most of all: behind 1, 3 and 4
LAYER_TYPES = ["conv", "full_attention", "conv", "full_attention", "full_attention", "conv"]


def _lfm2_vl() -> dict:
    vision = dict(CROP_VISION, model_type="siglip2_vision_model", patch_size=4, num_patches=64, vision_use_head=False)
    text = dict(TEXT, model_type="lfm2", layer_types=LAYER_TYPES, block_auto_adjust_ff_dim=False)
    ids = dict(image_token_id=IMAGE, downsample_factor=2, tie_word_embeddings=False)
    return dict(vision_config=vision, text_config=text, projector_hidden_size=48, **ids)


def _padded_tiles(number: int, generator: Generator, several: bool) -> Picture:
    (rows, columns), (high, wide) = SHAPES[number % 3]
    tiles = rows * columns
    ids = [VISION_START]
    for tile in range(tiles):
        ids += [FIRST_CROP + tile, *[IMAGE] * 16]
    ids += [THUMBNAIL] * bool(tiles) + [*[IMAGE] * (high * wide), VISION_END]
    pixels = torch.randn(tiles + 1, 64, 3 * 4 * 4, generator=generator)
    pixels[-1, 4 * high * wide :] = 0
    whole = Grid(high, wide, region=None if tiles else WHOLE_IMAGE)
    return Picture(ids, pixels, (*[PART] * tiles, whole), (8, 8) * tiles + (2 * high, 2 * wide))


def _with_shapes(samples: Samples) -> dict[str, Tensor]:
    if not _flat(samples):
        return {}
    shapes = torch.tensor([one for image in _flat(samples) for one in image.size]).view(-1, 2)
    mask = torch.arange(64) < shapes.prod(-1, keepdim=True)
    return {**_pixels(samples), "spatial_shapes": shapes, "pixel_attention_mask": mask.long()}


def _shapes(image: Picture) -> list[tuple[int, int]]:
    """Rows and columns of patches of each of its parts."""
    return [*zip(image.size[::2], image.size[1::2], strict=True)]


def _codes_lfm2_vl(images: Sequence[Picture], code: Callable[..., Tensor]) -> list[Tensor]:
    tiles = [code(image, *shape) for image in images for shape in _shapes(image)]
    return [torch.stack([torch.nn.functional.pad(tile, (0, 0, 0, 64 - len(tile))) for tile in tiles])]


def _average_lfm2_vl(model: Any) -> list[Any]:
    projector = model.model.multi_modal_projector
    passed = model.model.vision_tower.post_layernorm, projector.layer_norm, projector.act
    return [
        *_pass_on(*passed),
        _replace(projector.linear_1, lambda given: _fill(_mean_of_parts(given), 48)),
        _replace(projector.linear_2, _fill),
    ]


def _states_fit() -> bool:
    """Whether this transformers keeps the states of convolutions in its own caches."""
    return hasattr(transformers.cache_utils, "LinearAttentionLayer")


# -- MiniCPM-V: the whole and slices of any shape, all in one row; patches are merged twice

SLICE, SLICE_END = 94, 95
# rows and columns of patches of the whole; slices down and across, and patches of each
SLICED = [((12, 16), (2, 2), (8, 12)), ((16, 8), (0, 0), (0, 0)), ((12, 16), (1, 2), (12, 8))]
LINEAR = dict(
    layer_types=[f"{kind}_attention" for kind in ("linear", "full", "linear", "full", "full", "linear")],
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    head_dim=16,
    rope_parameters=dict(MROPE, partial_rotary_factor=1.0),
)


def _minicpm() -> dict:
    return dict(
        vision_config=dict(CROP_VISION, patch_size=4, image_size=64),
        text_config=dict(TEXT, **LINEAR, model_type="qwen3_5_text"),
        insert_layer_id=1,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )


def _minicpm_4_7() -> dict:
    marks = dict(image_start_id=VISION_START, image_end_id=VISION_END, slice_start_id=SLICE, slice_end_id=SLICE_END)
    return dict(_minicpm(), **marks, newline_id=LINE)


def _row(patches: Sequence[tuple[int, int]], generator: Generator) -> Tensor:
    """Pixels of so many patches, side by side."""
    return torch.randn(1, 3, 4, 4 * sum(high * wide for high, wide in patches), generator=generator)


def _sliced(number: int, generator: Generator, several: bool) -> Picture:
    whole, (rows, columns), part = SLICED[number % 3]
    ids = [VISION_START, *[IMAGE] * (whole[0] * whole[1] // 16), VISION_END]
    for row in range(rows):
        ids += [LINE] * bool(row) + [SLICE, *[IMAGE] * (part[0] * part[1] // 16), SLICE_END] * columns
    shapes = [whole, *[part] * (rows * columns)]
    parts = [replace(one, height=part[0] // 4, width=part[1] // 4) for one in crop_grids(rows, columns)]
    grids = (Grid(whole[0] // 4, whole[1] // 4), *parts)
    return Picture(ids, _row(shapes, generator), grids, tuple(edge for shape in shapes for edge in shape))


def _frames(generator: Generator) -> Picture:
    shapes = [(8, 16)] * 2
    ids = [VISION_START, *[VIDEO] * 8, VISION_END] * 2
    return Picture(ids, _row(shapes, generator), (Grid(2, 4),) * 2, (8, 16) * 2, video=True)


def _in_a_row(samples: Samples) -> dict[str, Tensor]:
    batch = {}
    for kind in ("", "_videos"):
        seen = [one for one in _flat(samples) if one.video == bool(kind)]
        if seen:
            shapes = torch.tensor([shape for one in seen for shape in _shapes(one)], dtype=torch.int32)
            batch |= {
                f"pixel_values{kind}": torch.cat([one.pixels for one in seen], -1),
                f"target_sizes{kind}": shapes,
            }
    return batch


def _visual_types(ids: Tensor, video: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def _codes_minicpm(images: Sequence[Picture], code: Callable[..., Tensor]) -> list[Tensor]:
    return [torch.cat([code(image, *shape) for image in images for shape in _shapes(image)])[None]]


def _between_minicpm(model: Any) -> list[Any]:
    def average(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        shapes = args[1].tolist()
        parts = args[0][0].split([high * wide for high, wide in shapes])
        means = [
            part.view(high // 2, 2, wide // 2, 2, -1).mean((1, 3)).flatten(0, 1)
            for part, (high, wide) in zip(parts, shapes, strict=True)
        ]
        return torch.cat(means)[None]

    return [model.model.vision_tower.vit_merger.register_forward_hook(average)]


def _average_minicpm(model: Any) -> list[Any]:
    mlp = model.model.merger.mlp[0]
    passed = model.model.vision_tower.post_layernorm, mlp.pre_norm, mlp.linear_1, mlp.act
    return [*_pass_on(*passed), _replace(mlp.linear_2, lambda given: _fill(_mean_of_parts(given)))]


def _class(name: str) -> dict[str, str]:
    return dict(model=f"{name}ForConditionalGeneration", config=f"{name}Config")


FAMILIES = {
    "paddleocr_vl": TinyFamily(
        **_class("PaddleOCRVL"),
        settings=_paddleocr_vl,
        picture=_patches,
        inputs=_with_grids,
        types=_image_types,
        needs=_config_fits,
        relative=True,
        packed=True,
        average=_average_paddleocr_vl,
    ),
    "lighton_ocr": TinyFamily(
        **_class("LightOnOcr"),
        settings=_lighton_ocr,
        picture=_any_size,
        inputs=_padded,
        relative=True,
        packed=True,
        average=_average_lighton_ocr,
    ),
    "got_ocr2": TinyFamily(
        **_class("GotOcr2"),
        settings=_got_ocr2,
        picture=_tiles,
        inputs=_pixels,
        relative=True,
        eager_only=True,
        merged=4,
        average=_average_got_ocr2,
    ),
    "ovis2": TinyFamily(
        **_class("Ovis2"),
        settings=_ovis2,
        picture=_marked_tiles,
        inputs=_pixels,
        relative=True,
        average=_average_ovis2,
    ),
    "lfm2_vl": TinyFamily(
        **_class("Lfm2Vl"),
        settings=_lfm2_vl,
        picture=_padded_tiles,
        inputs=_with_shapes,
        needs=_states_fit,
        states=True,
        codes=_codes_lfm2_vl,
        average=_average_lfm2_vl,
    ),
    "minicpmv4_6": TinyFamily(
        **_class("MiniCPMV4_6"),
        settings=_minicpm,
        picture=_sliced,
        inputs=_in_a_row,
        film=_frames,
        needs=_states_fit,
        states=True,
        relative=True,
        merged=4,
        codes=_codes_minicpm,
        between=_between_minicpm,
        average=_average_minicpm,
    ),
    "minicpmv4_7": TinyFamily(
        **_class("MiniCPMV4_7"),
        settings=_minicpm_4_7,
        picture=_sliced,
        inputs=_in_a_row,
        film=_frames,
        types=_visual_types,
        needs=_states_fit,
        states=True,
        relative=True,
        merged=4,
        codes=_codes_minicpm,
        between=_between_minicpm,
        average=_average_minicpm,
    ),
}
