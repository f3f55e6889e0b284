"""Llama 4: an image is cut into tiles, the whole after them, around a decoder most of whose layers attend in chunks.

Chunks are in the masks that the model makes, and their layers' caches are those of sliding windows. Layers without
rotary positions scale each query by how far back it stands, which they count by the rows that they are given.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedModelError
from foveate.families.base import Family
from foveate.families.grids import WHOLE, Grid, Region, Run, tiles
from foveate.families.vision_encoder import average_squares


@dataclass(frozen=True)
class Llama4(Family):
    """Differs from the default in its grids, in its vision encoder's class token and in how it scales queries.

    A separator stands after each tile: one kind between the tiles of a row, another after a row. The whole comes
    last, and the token before it is the same for every image: a sample's last run is the whole of its last image, and
    each run with the same token before it ends an image.
    """

    projects_later: ClassVar[bool] = True

    def decoder(self, model: Any) -> Any:
        return model.language_model.model  # `get_decoder()` gives it with its head

    def scaled_rows(self, attention: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]] | None:
        layer: Any = attention
        if layer.use_rope or not layer.attn_temperature_tuning:
            return None

        def scale(positions: Tensor) -> Tensor:
            return torch.log1p(torch.floor((positions.float() + 1) / layer.floor_scale)) * layer.attn_scale + 1

        return layer.q_proj, scale

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        side = _side(config.vision_config)
        whole = {run.sample: run.before for run in runs}  # the last of each sample stays
        images: list[list[Run]] = [[]]
        for run in runs:
            if run.before is None or run.length != side * side:
                return None
            images[-1].append(run)
            if run.before == whole[run.sample]:
                images.append([])
        ids = kwargs["input_ids"].cpu()
        return [tuple(Grid(side, side, region=region) for region in _regions(image, ids)) for image in images[:-1]]

    def class_token(self, encoder: nn.Module) -> int | None:
        return -1

    def merge_patches(self, config: Any, output: Tensor, projected: Tensor) -> Tensor:
        tokens = _side(config.vision_config) ** 2
        if projected.numel() != len(output) * tokens * projected.shape[-1]:
            raise UnsupportedModelError(
                f"{len(output)} tiles of Llama 4's vision encoder, {tokens} visual tokens each, do not line up with "
                f"{projected.flatten(0, -2).shape[0]} tokens of the language model: beams repeat the images"
            )
        return average_squares(output[:, :-1], tokens)


def _side(vision: Any) -> int:
    """Rows, and columns, of tokens in a tile."""
    return int(vision.image_size // vision.patch_size * vision.pixel_shuffle_ratio)


def _regions(runs: Sequence[Run], ids: Tensor) -> Sequence[Region | None]:
    """What each run of an image covers, the whole last.

    Parameters
    ----------
    ids
        (B, L) long, of the prompt, on the CPU.
    """
    *parts, whole = runs
    if not parts:
        return [WHOLE]
    gaps = [after.start - run.start - run.length for run, after in itertools.pairwise(runs)]
    new_row = int(ids[whole.sample, whole.start - 2])  # the separator after the last row
    starts = [number for number, part in enumerate(parts) if number and part.before == new_row]
    columns = starts[0] if starts else len(parts)
    known = gaps == [1] * (len(parts) - 1) + [2] and [0, *starts] == list(range(0, len(parts), columns))
    known = known and len(parts) % columns == 0
    return [*(tiles(len(parts) // columns, columns) if known else [None] * len(parts)), WHOLE]


LLAMA4 = Llama4("llama4", "Llama 4", "meta-llama/Llama-4-Scout-17B-16E-Instruct")
