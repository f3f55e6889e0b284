"""Qwen3-VL with a mixture-of-experts decoder: what surrounds the experts is Qwen3-VL's."""

from foveate.families.qwen3_vl import Qwen3VL

QWEN3_VL_MOE = Qwen3VL("qwen3_vl_moe", "Qwen3-VL MoE", "Qwen/Qwen3-VL-30B-A3B-Instruct")
