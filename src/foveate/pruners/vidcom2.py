"""VidCom2: more tokens for the frames that stand out of a video, and in each frame those that stand out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.pruners.base import Pruner, VisualTokens, option
from foveate.pruners.budget import check_share
from foveate.pruners.films import films
from foveate.tensors import best

WIDTHS = tuple(2.0**power for power in range(-3, 2))  # of the Gaussian kernels
TEMPERATURE = 0.01  # of the frames' shares
ROWS = 512  # tokens compared at a time, or those of one frame


@dataclass(frozen=True, kw_only=True)
class VidCom2(Pruner):
    """Keep, of each video, in each frame the tokens least like the video's mean and the frame's mean.

    On the half of the channels that vary least over the video, as unit vectors x, likeness to a mean μ is the sum of
    exp(-‖x - μ‖² / 2α) over α = 1/8, 1/4, 1/2, 1, 2. A frame whose tokens are on average less like the video's mean
    gets more places: keep · (1 + softmax - its mean) of its tokens, at most all and at least one. Images and
    separators stay whole.

    Source: Liu et al., "Video Compression Commander", EMNLP 2025 (arXiv 2505.14454); written from a description of the
    authors' code. The mean of unit vectors is not brought to unit length.

    Raises
    ------
    BudgetError
        When `keep` makes no sense.
    """

    name: ClassVar[str] = "vidcom2"
    paper: ClassVar[str] = "Liu et al., EMNLP 2025, arXiv 2505.14454"
    url: ClassVar[str] = "https://arxiv.org/abs/2505.14454"
    summary: ClassVar[str] = "of videos, the tokens that stand out, more in frames that do; images whole"
    uses_grids: ClassVar[bool] = True
    needs_all_tokens: ClassVar[bool] = True

    keep: float = option(0.22, "share of each video's tokens; 1.0 switches pruning off", check=check_share)

    def layers(self, depth: int) -> tuple[int, ...]:
        return (0,)

    def with_mean(self, share: float, config: Any) -> VidCom2:
        return dataclasses.replace(self, keep=share)

    def select(self, tokens: VisualTokens) -> Tensor:
        keep = tokens.valid.clone()
        if self.keep == 1.0:
            return keep
        for sample, columns in films(tokens):
            features, size = tokens.features[sample], columns.shape[1]
            steady = features[columns.flatten()].float().var(0).argsort(stable=True)[: features.shape[-1] // 2]
            unit = torch.cat([_unit(features[some][..., steady]) for some in columns.split(max(1, ROWS // size))])
            to_video, to_frame = _likeness(unit, unit.mean((0, 1))), _likeness(unit, unit.mean(1, keepdim=True))
            share = (-to_video.double().mean(1) / TEMPERATURE).softmax(0)
            scale = (self.keep * (1 + share - share.mean())).clamp(max=1)
            k = (scale * size).round().long().clamp(min=1)
            keep[sample, columns] = best(-(to_video + to_frame), k, torch.ones_like(columns, dtype=torch.bool))
        return keep


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)


def _likeness(unit: Tensor, mean: Tensor) -> Tensor:
    """(T, P) likeness of vectors (T, P, C) to a mean, that of all or (T, 1, C)."""
    step = max(1, ROWS // unit.shape[1])
    parts = zip(unit.split(step), mean.expand(len(unit), 1, -1).split(step), strict=True)
    apart = torch.cat([(part - own).square().sum(-1) for part, own in parts])
    return torch.stack([(-apart / (2 * width)).exp() for width in WIDTHS]).sum(0)
