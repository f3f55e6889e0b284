"""Molmo 2: its images see one another, its patches are pooled by a list, and half of its layers rotate otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from foveate.families import Grid
from tests.models.base import TinyFamily
from tests.models.images import FILM_END, FILM_START, IMAGE, LINE, VISION_END, VISION_START, WHOLE, Picture
from tests.models.sizes import LAYERS, TEXT

SPECIAL = (IMAGE, LINE, VISION_START, VISION_END, WHOLE, FILM_START, FILM_END)
VISION = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=4, head_dim=8, intermediate_size=48)


def _molmo2() -> dict:
    text = {name: value for name, value in TEXT.items() if not name.endswith("_token_id")}
    return dict(
        vision_config=dict(VISION, num_hidden_layers=3, image_size=[32, 32], patch_size=4),
        adapter_config=dict(VISION, vision_feature_layer=[2, 0], text_hidden_size=64),
        text_config=dict(
            text,
            head_dim=16,
            additional_vocab_size=8,
            rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=10000.0),
            rope_scaling_layers=[*range(0, LAYERS, 2)],
        ),
        image_patch_id=IMAGE,
        image_start_token_id=VISION_START,
        low_res_image_start_token_id=WHOLE,
        image_end_token_id=VISION_END,
        frame_start_token_id=FILM_START,
        frame_end_token_id=FILM_END,
    )


def _pooled(patches: Tensor) -> Tensor:
    """(tokens, 4) of squares of patches in a raster of their numbers."""
    high, wide = patches.shape
    return patches.view(high // 2, 2, wide // 2, 2).transpose(1, 2).reshape(-1, 4)


# numbers of the patches of a large image: two crops of 8 x 8 patches beside or below one another, four rows or columns
# of each seen by both: each gives the half that is nearer to its middle; behind the 64 patches of the small image
FIRST, SECOND = torch.arange(64).view(8, 8) + 64, torch.arange(64).view(8, 8) + 128
BESIDE = torch.cat([FIRST[:, :6], SECOND[:, 2:]], 1)
BELOW = torch.cat([FIRST[:6], SECOND[2:]], 0)
SMALL = torch.arange(64).view(8, 8)
SHAPES = [(BESIDE, (4, 6)), (FIRST, (4, 4)), (BELOW, (6, 4))]


def _picture(number: int, generator: Generator, several: bool) -> Picture:
    patches, (high, wide) = SHAPES[number % 3]
    pixels = torch.randn(2 if patches is FIRST else 3, 64, 48, generator=generator)
    # the second has no tokens between the rows of the small image, as the processor can be told
    small = [*[IMAGE] * 4, LINE] * 4 if number % 3 != 1 else [IMAGE] * 16
    ids = [WHOLE, *small, VISION_END, VISION_START, *[*[IMAGE] * wide, LINE] * high, VISION_END]
    return Picture(ids, pixels, (Grid(4, 4), Grid(high, wide)), (4, 4, high, wide))


def _film(generator: Generator) -> Picture:
    """Two frames, each with its time before it."""
    frame = [FILM_START, *[IMAGE] * 16, FILM_END]
    pixels = torch.randn(2, 64, 48, generator=generator)
    return Picture([5, *frame, 6, *frame], pixels, (Grid(4, 4), Grid(4, 4)), (2, 4, 4), video=True)


def pooling(image: Picture) -> Tensor:
    """(tokens, 4), the patches of each token among those of its image or video."""
    if image.video:
        return torch.cat([_pooled(SMALL), _pooled(SMALL + 64)])
    large = next(patches for patches, size in SHAPES if size == image.size[2:])
    return torch.cat([_pooled(SMALL), _pooled(large)])


def _inputs(samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    """Images or videos: the model takes no batch with both."""
    batch = {}
    for kind in (False, True):
        seen = [one for sample in samples for one in sample if one.video == kind]
        if not seen:
            continue
        first = torch.tensor([0, *(len(one.pixels) * 64 for one in seen)]).cumsum(0).tolist()
        lists = torch.cat([pooling(one) + start for one, start in zip(seen, first, strict=False)])
        pixels, sizes = torch.cat([one.pixels for one in seen]), torch.tensor([one.size for one in seen])
        if kind:
            batch |= {"pixel_values_videos": pixels, "video_token_pooling": lists, "video_grids": sizes}
        else:
            crops = torch.tensor([len(one.pixels) for one in seen])
            batch |= {"pixel_values": pixels, "image_token_pooling": lists}
            batch |= {"image_grids": sizes, "image_num_crops": crops}
    return batch


def _types(ids: Tensor, videos: Tensor) -> dict[str, Tensor]:
    """The tokens around images and behind their rows see one another, too."""
    return {"mm_token_type_ids": torch.isin(ids, torch.tensor(SPECIAL)).int()}


def _codes(seen: Sequence[Picture], code: Callable[..., Tensor]) -> list[Tensor]:
    """Each image small, then in crops that overlap by half; each frame small."""
    crops = []
    for one in seen:
        crops += [code(one, 8, 8)] * (len(one.grids) if one.video else 1)
        if not one.video:
            high, wide = 2 * one.grids[1].height, 2 * one.grids[1].width
            large = code(one, high, wide).view(high, wide, 3)
            starts = [(top, left) for top in range(0, high - 7, 4) for left in range(0, wide - 7, 4)]
            crops += [large[top : top + 8, left : left + 8].reshape(64, 3) for top, left in starts]
    return [torch.stack(crops)]


def _average(model: Any) -> list[Any]:
    """Of two blocks side by side the first is the last; the placeholder's embedding, which is added, is taken off."""
    placeholder = model.get_input_embeddings().weight[IMAGE, :32].detach()

    def average(module: Any, args: tuple, out: Any) -> Any:
        features, lists = args
        mean = features[..., :32].flatten(0, -2)[lists].mean(1) - placeholder
        return type(out)(last_hidden_state=torch.nn.functional.pad(mean, (0, out[0].shape[-1] - 32)))

    return [model.model.multi_modal_projector.register_forward_hook(average)]


FAMILIES = {
    "molmo2": TinyFamily(
        model="Molmo2ForConditionalGeneration",
        config="Molmo2Config",
        settings=_molmo2,
        picture=_picture,
        inputs=_inputs,
        types=_types,
        codes=_codes,
        average=_average,
    ),
}
