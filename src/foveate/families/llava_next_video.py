"""LLaVA-NeXT-Video: images as in LLaVA-NeXT; each frame of a video a square, its tokens pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.families.grids import Grid, Run
from foveate.families.llava_next import LlavaNext
from foveate.families.turns import frames_of, in_turn


@dataclass(frozen=True)
class LlavaNextVideo(LlavaNext):
    """Differs from LLaVA-NeXT in its videos: frame behind frame in one run, without newlines."""

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        side = config.vision_config.image_size // config.vision_config.patch_size // config.spatial_pool_stride
        number, frames = frames_of(kwargs, side**2)
        images = super().image_grids(config, kwargs, runs) or []
        return in_turn(runs, images, [(Grid(side, side),) * frames] * number, config.video_token_id)

    def vision_order(
        self, config: Any, sizes: Tensor | None, projected: Tensor, given: Tensor, grids: Sequence[Grid]
    ) -> Tensor | None:
        """As in LLaVA-NeXT; videos are encoded behind the images, and come out in order."""
        large = [number for number, grid in enumerate(grids) if grid.row_ends]
        images = [grid for number in large for grid in grids[number - 1 : number + 1]]
        length = sum(grid.length for grid in images)
        frames = sum(grid.length for grid in grids) - length
        encoded = len(projected) - frames
        if encoded < 0 or len(given) != length + frames:
            return None
        videos = torch.arange(encoded, len(projected), device=given.device)
        if not images:
            return videos if not encoded else None
        order = super().vision_order(config, sizes, projected[:encoded], given[:length], images)
        return None if order is None else torch.cat([order, videos])


LLAVA_NEXT_VIDEO = LlavaNextVideo("llava_next_video", "LLaVA-NeXT-Video", "llava-hf/LLaVA-NeXT-Video-7B-hf")
