"""PyramidDrop: in three stages over the depth, keep what the last prompt token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.errors import BudgetError
from foveate.pruners.base import PromptRows, Pruner, VisualTokens, option
from foveate.pruners.budget import check_share


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Pruner):
    """Cut before a quarter, half and three quarters of the depth, each time by the same ratio λ.

    Tokens are ranked by the attention of the last prompt token in the layer before the cut, averaged over heads. The
    paper's λ = 0.5 leaves an eighth after the last stage: `keep=0.125`; here λ is the cube root of `keep`.

    Source: Xing et al., "PyramidDrop", CVPR 2025 (arXiv 2410.17247), section 3. It prunes after layers 8, 16 and 24
    of 32, counted from 1, which are cuts before layers 8, 16 and 24 here.

    Raises
    ------
    BudgetError
        When `keep` makes no sense; on attaching, when the model has under four layers.
    """

    name: ClassVar[str] = "pyramiddrop"
    paper: ClassVar[str] = "Xing et al., CVPR 2025, arXiv 2410.17247"
    url: ClassVar[str] = "https://arxiv.org/abs/2410.17247"
    summary: ClassVar[str] = "what the last prompt token attends to, in three stages over the depth"

    keep: float = option(
        0.125, "share of the visual tokens after the last stage; 1.0 switches pruning off", check=check_share
    )

    def layers(self, depth: int) -> tuple[int, ...]:
        if depth < 4:
            raise BudgetError(f"pyramiddrop needs four decoder layers, the model has {depth}")
        return depth // 4, depth // 2, 3 * depth // 4

    def kept(self, layer: int, dense: Tensor, present: Tensor) -> Tensor:
        if self.keep == 1.0:
            return present
        # the same ratio of what is left: no stage needs to know which one it is
        return torch.minimum((present.double() * self.keep ** (1 / 3)).round().long().clamp(min=1), present)

    def attention_rows(self, layer: int, rows: PromptRows) -> Tensor | None:
        return None if self.keep == 1.0 else rows.last[:, None]

    def select(self, tokens: VisualTokens) -> Tensor:
        if self.keep == 1.0:
            return tokens.valid
        if tokens.attention is None:
            raise RuntimeError("PyramidDrop was given no attention; the engine must honour attention_rows")
        k = self.kept(tokens.layer, tokens.dense, tokens.present)
        return select.top_k(tokens.attention[:, :, 0].mean(1), k, tokens.valid)
