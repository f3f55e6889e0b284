"""Mistral Small 3.1 and its relatives: Pixtral's vision encoder, its patches merged in squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foveate.families.base import Family
from foveate.families.grids import Grid, Run
from foveate.families.pixtral import merge_packed, pixtral_grids, pixtral_sizes


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
