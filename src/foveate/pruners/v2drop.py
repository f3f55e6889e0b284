"""V2Drop: in three stages over the depth, keep the tokens that the last layer changed most."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.errors import BudgetError
from foveate.pruners.base import Pruner, VisualTokens, depth_of, option
from foveate.pruners.btp.stages import BTPStage, mean_tokens, scale_to
from foveate.pruners.budget import check_share, tokens_to_keep

PLACES = (3 / 28, 16 / 28, 22 / 28)  # of the depth: before layers 3, 16 and 22 of Qwen2-VL-7B's 28
KEEPS = (1 / 2, 1 / 4, 0.0)  # of the dense prompt's visual tokens: half each time, then none


@dataclass(frozen=True, kw_only=True)
class V2Drop(Pruner):
    """Keep at each stage the visual tokens whose hidden states the layer before it changed most, by L2 distance.

    By default half of the tokens before 3/28 of the depth, half of those before 16/28, none before 22/28. No attention
    is read.

    Source: "V2Drop", CVPR 2026 (arXiv 2509.01552); written from a description of the authors' code, which gives the
    shares for LLaVA-1.5 and the layers for Qwen2-VL. Both together are ours, as are the scaling to `keep` and `drop`.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when `keep` cannot be reached or the model has too few layers.
    """

    name: ClassVar[str] = "v2drop"
    paper: ClassVar[str] = "CVPR 2026, arXiv 2509.01552"
    url: ClassVar[str] = "https://arxiv.org/abs/2509.01552"
    summary: ClassVar[str] = "in three stages, the tokens whose hidden states changed most in the layer before"
    keep_is_mean: ClassVar[bool] = True

    keep: float | None = option(
        None,
        "mean share of visual tokens per decoder layer, by scaling all stages; none: as they are; 1.0: off",
        check=check_share,
    )
    drop: bool = option(True, "drop at the last stage all that is left; else there is none")
    depth: int | None = option(None, "decoder layers of the model; worked out on attaching", at_least=1)

    def resolved(self, config: Any) -> V2Drop:
        made = dataclasses.replace(self, depth=depth_of(config))
        made.schedule(depth_of(config))
        return made

    def with_mean(self, share: float, config: Any) -> V2Drop:
        made = dataclasses.replace(self, keep=share)
        made.schedule(depth_of(config))
        return made

    def scaled(self, factor: float, config: Any) -> V2Drop:
        depth = depth_of(config)
        kept = [dataclasses.replace(one, keep=min(1.0, factor * one.keep)) for one in self.schedule(depth)]
        return dataclasses.replace(self, keep=mean_tokens(kept, depth))

    def schedule(self, depth: int) -> tuple[BTPStage, ...]:
        """The stages in a model of `depth` decoder layers, of which layer and keep count.

        Raises
        ------
        BudgetError
            When there are too few layers, or no scaling gives the mean.
        """
        return _schedule(self.keep, self.drop, depth)

    def layers(self, depth: int) -> tuple[int, ...]:
        return tuple(stage.layer for stage in self.schedule(depth))

    def notes(self, depth: int) -> tuple[str, ...]:
        if self.keep == 1.0 or not self.drop:
            return ()
        return (
            f"v2drop: every visual token is dropped before layer {self.layers(depth)[-1]} of {depth}; models that "
            "still read the image there lose reading tasks (drop=False does not drop)",
        )

    def wants_previous(self, layer: int) -> bool:
        return self.keep != 1.0 and self._share(layer) > 0

    def kept(self, layer: int, dense: Tensor, present: Tensor) -> Tensor:
        if self.keep == 1.0:
            return present
        share = self._share(layer)
        return torch.minimum(tokens_to_keep(share, dense), present) if share else torch.zeros_like(present)

    def select(self, tokens: VisualTokens) -> Tensor:
        if self.keep == 1.0:
            return tokens.valid
        k = self.kept(tokens.layer, tokens.dense, tokens.present)
        if not self._share(tokens.layer):
            return torch.zeros_like(tokens.valid)
        if tokens.previous is None:
            raise RuntimeError("V2Drop was given no earlier hidden states; the engine must honour wants_previous")
        change = torch.linalg.vector_norm(tokens.features.float() - tokens.previous.float(), dim=-1)
        return select.top_k(change, k, tokens.valid)

    def _share(self, layer: int) -> float:
        if self.depth is None:
            raise RuntimeError("V2Drop's stages depend on the model: ask resolved(config) first")
        return next((stage.keep for stage in self.schedule(self.depth) if stage.layer == layer), 0.0)


@functools.lru_cache(maxsize=64)  # it is asked for several times a stage
def _schedule(keep: float | None, drop: bool, depth: int) -> tuple[BTPStage, ...]:
    layers = [max(1, round(place * depth)) for place in PLACES]
    if not layers[0] < layers[1] < layers[2] < depth:
        raise BudgetError(f"v2drop needs a model of more decoder layers than {depth}")
    stages = tuple(BTPStage(*stage) for stage in zip(layers, KEEPS, strict=True) if stage[1] or drop)
    try:
        return stages if keep in (None, 1.0) else scale_to(stages, keep, depth)
    except BudgetError as error:
        raise BudgetError(str(error).replace("btp", "v2drop", 1)) from None
