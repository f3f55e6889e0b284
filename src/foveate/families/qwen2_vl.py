"""Qwen2-VL: all that matters here is as in Qwen2.5-VL."""

from foveate.families.qwen2_5_vl import QwenVL

QWEN2_VL = QwenVL("qwen2_vl", "Qwen2-VL", "Qwen/Qwen2-VL-7B-Instruct")
