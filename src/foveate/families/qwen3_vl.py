"""Qwen3-VL: Qwen2.5-VL with deep-stack features, added to the visual tokens behind the first decoder layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.families.base import LayerAdditions
from foveate.families.qwen2_5_vl import QwenVL


@dataclass(frozen=True)
class Qwen3VL(QwenVL):
    """Takes the deep-stack features out of the decoder's arguments: left there, they no longer fit the kept tokens."""

    def take_additions(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], LayerAdditions | None]:
        values = kwargs.get("deepstack_visual_embeds")
        if values is None:
            return kwargs, None
        rest = {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}
        return rest, LayerAdditions(kwargs["visual_pos_masks"], list(values))


QWEN3_VL = Qwen3VL("qwen3_vl", "Qwen3-VL", "Qwen/Qwen3-VL-8B-Instruct")
