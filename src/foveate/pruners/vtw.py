"""VTW: withdraw all visual tokens before one layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.errors import BudgetError
from foveate.pruners.base import Pruner, VisualTokens, depth_of, option
from foveate.pruners.budget import check_share


@dataclass(frozen=True, kw_only=True)
class VTW(Pruner):
    """Drop every visual token before one layer, by default half-way; from there on text tokens carry what was seen.

    Source: Lin et al., "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
    AAAI 2025 (arXiv 2405.05803). It finds the layer by the divergence of the next token's distribution from the full
    model's, which `foveate calibrate btp` measures, too (`harmless` in what it writes). Positions stay, as there.

    Raises
    ------
    BudgetError
        When an option makes no sense, or both are given; on attaching, when the model has no such layer.
    """

    name: ClassVar[str] = "vtw"
    paper: ClassVar[str] = "Lin et al., AAAI 2025, arXiv 2405.05803"
    url: ClassVar[str] = "https://arxiv.org/abs/2405.05803"
    summary: ClassVar[str] = "all visual tokens up to one layer, none behind it"
    keep_is_mean: ClassVar[bool] = True
    finds_budget: ClassVar[bool] = True

    keep: float | None = option(
        None,
        "mean share of visual tokens per decoder layer, which gives the layer; none: as `layer` says; 1.0: off",
        check=check_share,
    )
    layer: int | None = option(
        None, "drop all before this decoder layer, counted from 0; none: half the depth", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None and self.keep not in (None, 1.0):
            raise BudgetError("vtw: either keep, a mean share of visual tokens per layer, or the layer itself")

    def layers(self, depth: int) -> tuple[int, ...]:
        layer = depth // 2 if self.layer is None else self.layer
        if self.layer is None and self.keep not in (None, 1.0):
            layer = round(self.keep * depth)
            if not 0 < layer < depth:
                raise BudgetError(f"vtw: no layer of {depth} gives a mean share of {self.keep}")
        if layer >= depth:
            raise BudgetError(f"vtw: layer {layer} is not in a model of {depth} decoder layers")
        return (layer,)

    def with_mean(self, share: float, config: Any) -> VTW:
        made = dataclasses.replace(self, keep=share, layer=None)
        made.layers(depth_of(config))
        return made

    def set_to(self, setting: float, config: Any) -> VTW:
        return dataclasses.replace(self, keep=None, layer=1 + round(setting * (depth_of(config) - 2)))

    def scaled(self, factor: float, config: Any) -> VTW:
        return self  # up to its layer it keeps all

    def notes(self, depth: int) -> tuple[str, ...]:
        if self.keep == 1.0:
            return ()
        return (
            f"vtw: every visual token is dropped before layer {self.layers(depth)[0]} of {depth}; models that still "
            "read the image there lose reading tasks",
        )

    def kept(self, layer: int, dense: Tensor, present: Tensor) -> Tensor:
        return present if self.keep == 1.0 else torch.zeros_like(present)

    def select(self, tokens: VisualTokens) -> Tensor:
        return tokens.valid if self.keep == 1.0 else torch.zeros_like(tokens.valid)
