"""MiniCPM-V 4.6 and 4.7: an image small, then in slices, each of any shape, around Qwen3.5's decoder."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.families.grids import Grid, Region, Run, tiles
from foveate.families.qwen import Qwen3_5
from foveate.families.turns import Places, where_grids_lie
from foveate.families.vision_encoder import kept_sizes

NEAR, NEW_ROW = 2, 3  # tokens between two slices of a row, or two frames; a line break more between two rows
Piece = tuple[int, Places, Grid]


@dataclass(frozen=True)
class MiniCPMV(Qwen3_5):
    """Differs from Qwen3.5 in its vision encoder, which merges patches in its middle and after it, and in its grids.

    The token before the whole of an image is the same for all, and that before a slice another; a sample's first run
    is always a whole image. Frames of a video stand side by side, with nothing but their own marks between.
    """

    wants_sizes: ClassVar[bool] = True

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        if any(run.token is None for run in runs):
            return None  # given as embeddings, nothing tells the whole of an image from a slice
        encoded = kwargs.get("mm_encoder_outputs") or {}
        pieces: list[Piece] = []
        for kind, name in (("image", "target_sizes"), ("video", "target_sizes_videos")):
            mine = [run for run in runs if (run.token == config.video_token_id) == (kind == "video")]
            features = encoded.get(kind)
            sizes = kwargs.get(name) if features is None else kept_sizes(features)
            if not mine:
                continue
            found = None if sizes is None else self._pieces(config, mine, sizes, features)
            if found is None:
                return None
            pieces += found
        at = {(run.sample, run.start): run for run in runs}
        if any(len(places) > 1 or places[0][:2] not in at for _, places, _ in pieces):
            return None
        pieces.sort(key=lambda piece: piece[1][0][:2])
        return [
            tuple(grid for frame in image for grid in _with_regions(frame))
            for image in _together(pieces, at, config.video_token_id)
        ]

    def _pieces(self, config: Any, runs: Sequence[Run], sizes: Tensor, encoded: Any) -> list[Piece] | None:
        """Where each slice lies; `downsample_mode` of the call, which `generate()` takes away, is in the lengths."""
        features = None if encoded is None else encoded.pooler_output
        for side in _sides(config):
            grids = [Grid(high // side, wide // side) for high, wide in sizes.tolist()]
            found = where_grids_lie(runs, grids, features)
            if found is not None:
                return found
        return None

    def vision_sizes(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
        sizes = kwargs.get("target_sizes")
        return sizes if sizes is not None or len(args) < 2 else args[1]

    def merge_call(self, config: Any, output: Tensor, projected: Tensor, sizes: Tensor | None) -> Tensor:
        patches = output[0]
        if sizes is None:
            return self.merge_patches(config, patches, projected)
        # after the merger in the encoder's middle there is one feature for four patches, in raster order as well
        sizes = sizes.cpu() // (2 if 4 * len(patches) == int(sizes.prod(-1).sum()) else 1)
        side = math.isqrt(len(patches) // len(projected))
        images = patches.split(sizes.prod(-1).tolist())
        means = [
            image.view(high // side, side, wide // side, side, -1).mean((1, 3)).flatten(0, 1)
            for image, (high, wide) in zip(images, sizes.tolist(), strict=True)
        ]
        return torch.cat(means)


def _sides(config: Any) -> tuple[int, int]:
    """Patches along the side of a visual token: with the merger in the encoder's middle, and without it."""
    after = config.merge_kernel_size[0] ** config.merger_times
    return 2 * after, after


def _together(pieces: Sequence[Piece], at: Mapping[tuple[int, int], Run], video: int) -> list[list[list[Piece]]]:
    """For each image or video its frames, one for an image: each the whole of it and its slices."""
    whole: dict[int, int | None] = {}  # the token before the whole of an image, in each sample
    found: list[list[list[Piece]]] = []
    last: tuple[int, int, int] | None = None
    for piece in pieces:
        place = piece[1][0]
        run = at[place[:2]]
        if run.before != whole.setdefault(run.sample, run.before):
            found[-1][-1].append(piece)
        elif run.token == video and last is not None and at[last[:2]].token == video and _gap(last, place) == NEAR:
            found[-1].append([piece])
        else:
            found.append([[piece]])
        last = place
    return found


def _gap(last: tuple[int, int, int], place: tuple[int, int, int]) -> int | None:
    """Tokens between two runs; None if they are of two samples."""
    return place[1] - last[1] - last[2] if place[0] == last[0] else None


def _with_regions(frame: Sequence[Piece]) -> list[Grid]:
    """The grids of an image or frame, the whole first, its slices with what their raster tells."""
    whole, *slices = frame
    gaps = [_gap(a[1][0], b[1][0]) for a, b in itertools.pairwise(slices)]
    rows = gaps.count(NEW_ROW) + 1
    columns = len(slices) // rows
    raster = [NEW_ROW if number % columns == 0 else NEAR for number in range(1, len(slices))] if columns else []
    regions: Sequence[Region | None] = tiles(rows, columns) if gaps == raster else [None] * len(slices)
    return [
        whole[2],
        *(dataclasses.replace(one[2], region=region) for one, region in zip(slices, regions, strict=True)),
    ]


MINICPM_V4_6 = MiniCPMV("minicpmv4_6", "MiniCPM-V 4.6", "openbmb/MiniCPM-V-4.6")
MINICPM_V4_7 = MiniCPMV("minicpmv4_7", "MiniCPM-V 4.7", "openbmb/MiniCPM-V-4.7-1B")
