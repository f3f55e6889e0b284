"""Images and videos for the tiny models, with the tokens that stand for them and where those lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from foveate.families import Grid

IMAGE, VIDEO, VISION_START, VISION_END = 90, 91, 92, 93
AROUND, WHOLE, LINE = 94, 95, 96  # Idefics3: around an image, before the whole of it, behind a row of crops
FIRST_CROP = 100  # then one id a place in the raster of crops, nine a row
FILM_START, FILM_END = 98, 99  # around a video of GLM
STAMP = 97  # before a frame of a Qwen3-VL video

SIZED = ("qwen", "glm", "exaone", "ernie")  # whose images have sizes in patches, which come in merge groups
QWEN_SIZES = [(8, 12), (12, 12)]
# (height, width) in pixels, crops of the padded image in 32 pixels, grid after unpadding; worked out by hand
LLAVA_NEXT_SIZES = [((20, 64), 2, (2, 8)), ((60, 30), 2, (8, 4)), ((64, 50), 4, (8, 6))]
TILES = [3, 1, 2]
CROPS = [(1, 2), (0, 0), (2, 1)]  # none where the image is not split
SIDE = Grid(4, 4)
PART = replace(SIDE, region=None)  # of an image, unknown which


@dataclass(frozen=True)
class Picture:
    """An image or a video.

    Attributes
    ----------
    ids
        Its tokens in the prompt, with those around it.
    pixels
        As the family's models take them.
    grids
        Where its visual tokens lie.
    size
        What the family's models want to know beside the pixels.
    """

    ids: list[int]
    pixels: Tensor
    grids: tuple[Grid, ...]
    size: tuple[int, ...] = ()
    video: bool = False


def picture(family: str, number: int, generator: Generator, several: bool = False) -> Picture:
    """The image `number` of a batch; the next one has another shape where the family has shapes.

    `several`: whether its sample has others.
    """
    from tests.models import TINY
    from tests.models import llava_and_gemma as tiny_more

    if family in TINY:
        return TINY[family].picture(number, generator, several)
    if family in tiny_more.MORE:
        return tiny_more.more_picture(family, number, generator, several)

    def square_crops(count: int) -> Tensor:
        return torch.randn(count, 3, 32, 32, generator=generator)

    if family == "gemma4":
        from tests.models.qwen3_and_glm import gemma4_picture

        return gemma4_picture(number, generator)
    if family.startswith(SIZED):
        high, wide = QWEN_SIZES[number % 2]
        pixels = torch.randn(high * wide, 3 * 2 * 4 * 4, generator=generator)
        ids = [VISION_START, *[IMAGE] * (high * wide // 4), VISION_END]
        return Picture(ids, pixels, (Grid(high // 2, wide // 2),), (1, high, wide))
    if family == "llava_next":
        size, crops, (high, wide) = LLAVA_NEXT_SIZES[number % 3]
        return Picture(
            [IMAGE] * (16 + high * (wide + 1)), square_crops(1 + crops), (SIDE, Grid(high, wide, row_ends=1)), size
        )
    if family == "internvl":
        tiles = TILES[number % 3]
        ids = [VISION_START, *[IMAGE] * (16 * tiles), VISION_END]
        return Picture(ids, square_crops(tiles), (PART,) * (tiles - 1) + (SIDE,))
    if family in ("idefics3", "smolvlm"):
        rows, columns = CROPS[number % 3]
        ids = []
        for row in range(rows):
            for column in range(columns):
                ids += [AROUND, FIRST_CROP + 9 * row + column, *[IMAGE] * 16]
            ids.append(LINE)
        ids += [LINE] * bool(rows) + [AROUND, WHOLE, *[IMAGE] * 16, AROUND]
        return Picture(ids, square_crops(rows * columns + 1), (*crop_grids(rows, columns), SIDE))
    return Picture([IMAGE] * 16, square_crops(1), (SIDE,))


def crop_grids(rows: int, columns: int) -> tuple[Grid, ...]:
    """Grids of crops that cut an image into so many rows and columns."""
    return tuple(
        replace(SIDE, region=(column / columns, row / rows, (column + 1) / columns, (row + 1) / rows))
        for row in range(rows)
        for column in range(columns)
    )


def film(family: str, generator: Generator) -> Picture:
    """A video of two frames; Qwen3-VL says before each frame when it was."""
    from tests.models import TINY
    from tests.models import llava_and_gemma as tiny_more

    if family in TINY:
        return TINY[family].film(generator)
    if family in tiny_more.MORE:
        return tiny_more.more_film(family, generator)
    pixels = torch.randn(2 * 8 * 8, 3 * 2 * 4 * 4, generator=generator)
    if family.startswith("glm"):  # a frame looks like an image, and says behind it when it was
        frame = [VISION_START, *[IMAGE] * 16, VISION_END]
        ids = [FILM_START, *frame, 5, *frame, 6, FILM_END]
        return Picture(ids, pixels, (SIDE, SIDE), (2, 8, 8), video=True)
    frames = 2 if family.startswith("qwen3") else 1
    frame = [VISION_START, *[VIDEO] * (32 // frames), VISION_END]
    ids = frame if frames == 1 else [STAMP, *frame, STAMP, 5, *frame]
    return Picture(ids, pixels, (SIDE, SIDE), (2, 8, 8), video=True)


def model_inputs(family: str, samples: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
    """What the models take beside the ids, from the images and videos of each sample."""
    from tests.models import TINY
    from tests.models import llava_and_gemma as tiny_more

    if family in TINY:
        return TINY[family].inputs(samples)
    if family in tiny_more.MORE:
        return tiny_more.more_inputs(family, samples)
    images = [one for sample in samples for one in sample if not one.video]
    videos = [one for sample in samples for one in sample if one.video]
    batch = {}
    if images:
        batch["pixel_values"] = torch.cat([image.pixels for image in images])
    if family == "gemma4":
        from tests.models.qwen3_and_glm import gemma4_inputs

        return gemma4_inputs(images) if images else {}
    if family.startswith(SIZED):
        if images:
            batch["image_grid_thw"] = torch.tensor([image.size for image in images])
        if videos:
            batch["pixel_values_videos"] = torch.cat([video.pixels for video in videos])
            batch["video_grid_thw"] = torch.tensor([video.size for video in videos])
    elif family == "llava_next" and images:
        batch["pixel_values"] = _stacked([image.pixels for image in images])
        batch["image_sizes"] = torch.tensor([image.size for image in images])
    elif family in ("idefics3", "smolvlm") and images:
        empty = torch.empty(0, 3, 32, 32)
        pixels = _stacked([torch.cat([empty, *(image.pixels for image in sample)]) for sample in samples])
        batch["pixel_values"] = pixels
        batch["pixel_attention_mask"] = (pixels != 0).any(2)
    return batch


def _stacked(crops: list[Tensor]) -> Tensor:
    """(N, most, 3, 32, 32) crops of each, those that are missing zero."""
    return torch.nn.utils.rnn.pad_sequence(crops, batch_first=True)
