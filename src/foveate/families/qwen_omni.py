"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: Qwen-VL's images and videos, and sounds, whose tokens all stay.

The sound of a video may stand between its frames (`use_audio_in_video`): the video then lies in several runs. The
thinker is what answers in words, `model.thinker` of a whole Omni model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.families.qwen2_5_vl import Qwen2_5VL
from foveate.families.qwen3_vl import Qwen3VL


def heard_ids(config: Any) -> tuple[int, ...]:
    """Ids of a sound's tokens, and of those that say where sounds and images begin: positions are counted by them."""
    names = ("audio_token_id", "audio_start_token_id", "vision_start_token_id")
    return tuple(value for name in names if isinstance(value := getattr(config, name, None), int))


@dataclass(frozen=True)
class Qwen2_5Omni(Qwen2_5VL):
    """Differs in the tokens of sounds, which are no visual tokens."""

    def reserved_ids(self, config: Any) -> tuple[int, ...]:
        return (*self.visual_ids(config), *heard_ids(config))


@dataclass(frozen=True)
class Qwen3Omni(Qwen3VL):
    """Differs in the tokens of sounds, which are no visual tokens."""

    def reserved_ids(self, config: Any) -> tuple[int, ...]:
        return (*self.visual_ids(config), *heard_ids(config))


QWEN2_5_OMNI = Qwen2_5Omni("qwen2_5_omni_thinker", "Qwen2.5-Omni", "Qwen/Qwen2.5-Omni-7B")
QWEN3_OMNI_MOE = Qwen3Omni("qwen3_omni_moe_thinker", "Qwen3-Omni", "Qwen/Qwen3-Omni-30B-A3B-Instruct")
