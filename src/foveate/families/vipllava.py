"""VipLLaVA: LLaVA-1.5 with features of several layers of its vision encoder side by side."""

from foveate.families.llava import Llava

VIPLLAVA = Llava("vipllava", "VipLLaVA", "llava-hf/vip-llava-7b-hf")
