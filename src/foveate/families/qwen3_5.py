"""Qwen3.5: Qwen3-VL's grids and positions, a decoder most of whose layers are linear attention, and no deep-stack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from foveate.families.qwen2_5_vl import QwenVL


@dataclass(frozen=True)
class Qwen3_5(QwenVL):
    """Differs in its layers without `self_attn`: gated delta rules behind a short convolution, both without bias."""

    def has_state(self, layer: nn.Module) -> bool:
        return hasattr(layer, "linear_attn")


QWEN3_5 = Qwen3_5("qwen3_5", "Qwen3.5", "Qwen/Qwen3.5-27B")
