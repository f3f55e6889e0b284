"""LLaVA-1.5: a fixed number of visual tokens an image; the default finds everything."""

from foveate.families.base import Family

LLAVA = Family("llava", "LLaVA-1.5", "llava-hf/llava-1.5-7b-hf")
