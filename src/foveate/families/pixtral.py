"""Pixtral's vision encoder: images of any size, each row of tokens a run of its own, with a text token after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.families.base import Family
from foveate.families.grids import Grid, Run
from foveate.families.turns import Places, take_turns, where_grids_lie
from foveate.families.vision_encoder import VisionParts, find_vision_parts, kept_sizes


def pixtral_grids(kwargs: Mapping[str, Any], runs: Sequence[Run], patch: int) -> list[tuple[Grid, ...]] | None:
    """Grids of each image, one each; None if unknown.

    `generate()` of current transformers hands the base model no image sizes, only encoded images: there the tokens
    between the rows tell how long these are.

    Parameters
    ----------
    kwargs
        Arguments of the base model's forward.
    runs
        Unbroken runs of visual tokens in prompt order.
    patch
        Pixels along the side of a visual token.
    """
    encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
    if encoded is not None:
        pieces = take_turns(runs, [[len(image) for image in encoded.pooler_output], []], -1)
        return None if pieces is None else [(_from_rows(places),) for _, _, places in pieces]
    sizes = kwargs.get("image_sizes")
    if sizes is None:
        return None
    return [(Grid(high // patch, wide // patch),) for high, wide in torch.as_tensor(sizes).tolist()]


def pixtral_sizes(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """(images, 2) height and width in pixels of the images in a call of the encoder."""
    sizes = kwargs.get("image_sizes", args[1] if len(args) > 1 else None)
    if sizes is not None:
        return torch.as_tensor(sizes)
    pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
    return torch.tensor([pixels.shape[-2:]] * len(pixels))


def merge_packed(output: Tensor, sizes: Tensor, patch: int, merge: int) -> Tensor:
    """(M, C), the mean of each square of `merge` x `merge` patches.

    Parameters
    ----------
    output
        (1, patches, C), those of each image in raster order, one image after the other.
    sizes
        (images, 2) in pixels.
    patch
        Pixels along the side of a patch.
    """
    grids = [(high // patch, wide // patch) for high, wide in sizes.tolist()]
    images = output[0].split([high * wide for high, wide in grids])
    means = []
    for image, (high, wide) in zip(images, grids, strict=True):
        # what is left over at the right and at the bottom makes no token
        squares = image.view(high, wide, -1)[: high // merge * merge, : wide // merge * merge]
        means.append(squares.unflatten(1, (-1, merge)).unflatten(0, (-1, merge)).mean((1, 3)).flatten(0, 1))
    return torch.cat(means)


def _from_rows(places: Places) -> Grid:
    """The grid of an image whose rows lie at these (sample, start, length) places."""
    sample, start, width = places[0]
    expected = [(sample, start + row * (width + 1), width) for row in range(len(places))]
    if len(places) == 1 or places != expected:  # one row, or a prompt without tokens between the rows
        return Grid(1, sum(length for _, _, length in places), known=False)
    return Grid(len(places), width)


@dataclass(frozen=True)
class Mistral3(Family):
    """Differs from the default in its grids, and in what its encoder puts out: the images of a batch in one row."""

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        return pixtral_grids(kwargs, runs, config.vision_config.patch_size * config.spatial_merge_size)

    def vision_sizes(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
        return pixtral_sizes(args, kwargs)

    def merge_call(self, config: Any, output: Tensor, projected: Tensor, sizes: Tensor | None) -> Tensor:
        if sizes is None:
            return self.merge_patches(config, output, projected)
        return merge_packed(output, sizes, config.vision_config.patch_size, config.spatial_merge_size)


MISTRAL3 = Mistral3("mistral3", "Mistral Small 3", "mistralai/Mistral-Small-3.1-24B-Instruct-2503")


@dataclass(frozen=True)
class LightOnOCR(Mistral3):
    """Differs in the name of its projector, and in its grids: nothing stands between the rows that would show them.

    `generate()` of current transformers takes the sizes of the images away from the base model; they are those that
    the encoder was given.
    """

    wants_sizes: ClassVar[bool] = True

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        sizes = kept_sizes(encoded)
        if encoded is None or sizes is None:
            return super().image_grids(config, kwargs, runs)
        side = config.vision_config.patch_size * config.spatial_merge_size
        grids = [Grid(high // side, wide // side) for high, wide in sizes.tolist()]
        found = where_grids_lie(runs, grids, encoded.pooler_output)
        return None if found is None else [(grid,) for *_, grid in found]

    def vision_parts(self, model: Any) -> VisionParts:
        return find_vision_parts(model, ("vision_projection",))


LIGHTON_OCR = LightOnOCR("lighton_ocr", "LightOnOCR", "lightonai/LightOnOCR-1B-1025")
