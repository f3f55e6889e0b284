"""FasterVLM: keep what the vision encoder's class token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate import select
from foveate.pruners.base import VisualTokens
from foveate.pruners.encoder import EncoderPruner


@dataclass(frozen=True, kw_only=True)
class FasterVLM(EncoderPruner):
    """Keep the visual tokens with the most attention from the class token of the vision encoder, mean over heads.

    It is read in the block whose output the model uses. Where the encoder has no class token, the mean over the
    queries of all patches stands in, and the report says so.

    Source: Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning" (arXiv 2412.01818,
    first version; VisPruner is what became of it).
    """

    name: ClassVar[str] = "fastervlm"
    paper: ClassVar[str] = "Zhang et al., 2024, arXiv 2412.01818v1"
    url: ClassVar[str] = "https://arxiv.org/abs/2412.01818v1"
    summary: ClassVar[str] = "what the vision encoder's class token attends to"
    by_class_token: ClassVar[bool] = True

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        return select.top_k(tokens.class_received[0], k, tokens.valid)
