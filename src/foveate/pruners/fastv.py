"""FastV: keep what the last prompt token attends to in one shallow layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.pruners.base import PromptRows, ScorePruner, VisualTokens


@dataclass(frozen=True, kw_only=True)
class FastV(ScorePruner):
    """Keep the visual tokens with the most attention from the last prompt token, averaged over heads.

    The attention is that of the layer before the cut: the paper's "after layer K = 2" (counted from 1) is `layer=2`
    here (counted from 0). Only that one row is computed, in fp32, for any attention backend.

    Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024 (arXiv 2403.06764). The paper's score
    is the mean attention from all tokens; its authors' code takes the last token's row, as is done here.
    """

    name: ClassVar[str] = "fastv"
    paper: ClassVar[str] = "Chen et al., ECCV 2024, arXiv 2403.06764"
    url: ClassVar[str] = "https://arxiv.org/abs/2403.06764"
    summary: ClassVar[str] = "what the last prompt token attends to in one shallow layer"
    lowest_layer: ClassVar[int] = 1  # before layer 0 there is no attention to read

    def attention_rows(self, layer: int, rows: PromptRows) -> Tensor | None:
        return None if self.keeps_all else rows.last[:, None]

    def score(self, tokens: VisualTokens) -> Tensor:
        if tokens.attention is None:
            raise RuntimeError("FastV was given no attention; the engine must honour attention_rows")
        return tokens.attention[:, :, 0].mean(1)
