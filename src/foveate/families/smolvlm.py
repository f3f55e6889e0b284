"""SmolVLM: Idefics3's layout around a smaller language model."""

from foveate.families.idefics3 import Idefics3

SMOLVLM = Idefics3("smolvlm", "SmolVLM2", "HuggingFaceTB/SmolVLM2-2.2B-Instruct")
