"""Qwen3.5 with a mixture-of-experts decoder."""

from foveate.families.qwen3_5 import Qwen3_5

QWEN3_5_MOE = Qwen3_5("qwen3_5_moe", "Qwen3.5 MoE", "Qwen/Qwen3.5-35B-A3B")
