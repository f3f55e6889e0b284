"""Qwen2-VL: as Qwen2.5-VL, but for where its config has the width of the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.families.qwen2_5_vl import QwenVL


@dataclass(frozen=True)
class Qwen2VL(QwenVL):
    """Its `hidden_size` is the language model's."""

    def vision_width(self, config: Any) -> int:
        return int(config.vision_config.embed_dim)


QWEN2_VL = Qwen2VL("qwen2_vl", "Qwen2-VL", "Qwen/Qwen2-VL-7B-Instruct")
