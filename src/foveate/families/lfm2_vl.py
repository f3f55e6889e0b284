"""LFM2-VL: images of any shape, or tiles with a thumbnail; most of its decoder layers are short convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedModelError
from foveate.families.base import Family, Parts
from foveate.families.grids import Grid, Run
from foveate.families.turns import where_grids_lie
from foveate.families.vision_encoder import kept_sizes

TOGETHER = 1  # tokens between two tiles of an image, at most; between images there are at least an end and a start


@dataclass(frozen=True)
class Lfm2VL(Family):
    """Differs in its layers without `self_attn`, gated convolutions over three tokens, and in its grids.

    The tiles of an image and its thumbnail lie one token apart, which says what follows. Which part of the image a
    tile is, and whether the last is a thumbnail, is not in the config.
    """

    wants_sizes: ClassVar[bool] = True
    projects_each: ClassVar[bool] = True  # in older releases

    def parts(self, model: Any) -> Parts:
        if getattr(model.config.get_text_config(), "conv_bias", False):
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be pruned: its convolutions have a bias (conv_bias), by which padding "
                "leaves a trace in their state"
            )
        return super().parts(model)

    def has_state(self, layer: nn.Module) -> bool:
        return hasattr(layer, "conv")

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        sizes = kwargs.get("spatial_shapes") if encoded is None else kept_sizes(encoded)
        if sizes is None:
            return None
        grids = [Grid(*(edge // config.downsample_factor for edge in size)) for size in sizes.tolist()]
        found = where_grids_lie(runs, grids, None if encoded is None else encoded.pooler_output)
        if found is None:
            return None
        images: list[list[Grid]] = []
        end = None
        for sample, places, grid in found:
            if end is None or sample != end[0] or places[0][1] - end[1] > TOGETHER:
                images.append([])
            images[-1].append(grid)
            end = sample, places[-1][1] + places[-1][2]
        return [
            tuple(grid if len(image) == 1 else dataclasses.replace(grid, region=None) for grid in image)
            for image in images
        ]

    def vision_sizes(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
        return kwargs.get("spatial_shapes")

    def merge_call(self, config: Any, output: Tensor, projected: Tensor, sizes: Tensor | None) -> Tensor:
        if sizes is None:
            return self.merge_patches(config, output, projected)
        factor = config.downsample_factor
        tokens, rest = output.shape[1] // factor**2, projected.shape[:-1].numel()
        padded = rest == len(output) * tokens  # each image has as many rows as the largest can have
        means = []
        for image, (high, wide) in zip(output, sizes.tolist(), strict=True):
            squares = image[: high * wide].view(high // factor, factor, wide // factor, factor, -1)
            mean = squares.mean((1, 3)).flatten(0, 1)
            means.append(torch.nn.functional.pad(mean, (0, 0, 0, tokens - len(mean) if padded else 0)))
        return torch.cat(means)

    def vision_order(
        self, config: Any, sizes: Tensor | None, projected: Tensor, given: Tensor, grids: Sequence[Grid]
    ) -> Tensor | None:
        if sizes is None or len(projected) == len(given):
            return super().vision_order(config, sizes, projected, given, grids)
        tokens, rest = divmod(len(projected), len(sizes))
        lengths = (sizes // config.downsample_factor).prod(-1).tolist()
        if rest or max(lengths) > tokens or sum(lengths) != len(given):
            return None
        orders = [torch.arange(length) + number * tokens for number, length in enumerate(lengths)]
        return torch.cat(orders).to(given.device)


LFM2_VL = Lfm2VL("lfm2_vl", "LFM2-VL", "LiquidAI/LFM2-VL-1.6B")
