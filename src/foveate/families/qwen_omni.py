"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: Qwen-VL's images and videos, and sounds, whose tokens all stay.

What a video's sound says may stand between its frames (`use_audio_in_video`): the video then lies in several runs.
The thinker is what answers in words, `model.thinker` of a whole Omni model.
"""

from foveate.families.qwen2_5_vl import Qwen2_5VL
from foveate.families.qwen3_vl import Qwen3VL

QWEN2_5_OMNI = Qwen2_5VL("qwen2_5_omni_thinker", "Qwen2.5-Omni", "Qwen/Qwen2.5-Omni-7B")
QWEN3_OMNI_MOE = Qwen3VL("qwen3_omni_moe_thinker", "Qwen3-Omni", "Qwen/Qwen3-Omni-30B-A3B-Instruct")
