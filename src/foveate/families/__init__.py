"""Model families: what differs between them, each written as its difference from a default."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

from foveate.errors import UnsupportedModelError
from foveate.families.apertus1p5 import APERTUS1P5
from foveate.families.base import Family, LayerAdditions, Parts, visual_mask
from foveate.families.deepseek_vl import DEEPSEEK_VL
from foveate.families.ernie4_5_vl import ERNIE4_5_VL
from foveate.families.exaone4_5 import EXAONE4_5
from foveate.families.gemma import GEMMA3, GEMMA3N, GEMMA4, GEMMA4_UNIFIED, PALIGEMMA
from foveate.families.glm import GLM4V, GLM4V_MOE, GLM46V, GLM_OCR
from foveate.families.got_ocr2 import GOT_OCR2
from foveate.families.grids import Grid, Run, find_runs
from foveate.families.idefics import IDEFICS3, SMOLVLM
from foveate.families.internvl import AYA_VISION, COHERE2_VISION, INTERNVL
from foveate.families.kimi_k25 import KIMI_K25
from foveate.families.lfm2_vl import LFM2_VL
from foveate.families.llama4 import LLAMA4
from foveate.families.llava import LLAVA, VIPLLAVA
from foveate.families.llava_next import LLAVA_NEXT, LLAVA_NEXT_VIDEO
from foveate.families.llava_onevision import LLAVA_ONEVISION
from foveate.families.minicpm_v import MINICPM_V4_6, MINICPM_V4_7
from foveate.families.molmo2 import MOLMO2
from foveate.families.ovis2 import OVIS2
from foveate.families.paddleocr_vl import PADDLEOCR_VL
from foveate.families.perception_lm import PERCEPTION_LM
from foveate.families.pixtral import LIGHTON_OCR, MISTRAL3
from foveate.families.qwen import (
    QWEN2_5_OMNI,
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_5,
    QWEN3_5_MOE,
    QWEN3_OMNI_MOE,
    QWEN3_VL,
    QWEN3_VL_MOE,
)
from foveate.families.refused import REFUSED
from foveate.families.step3p7 import STEP3P7
from foveate.families.vision_encoder import VisionParts, same_features

if TYPE_CHECKING:
    from foveate.families.processors import load_processor

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for family in (
            LLAVA,
            LLAVA_NEXT,
            LLAVA_NEXT_VIDEO,
            LLAVA_ONEVISION,
            MISTRAL3,
            GEMMA3,
            GEMMA3N,
            GEMMA4,
            GEMMA4_UNIFIED,
            PALIGEMMA,
            VIPLLAVA,
            DEEPSEEK_VL,
            AYA_VISION,
            COHERE2_VISION,
            QWEN2_VL,
            QWEN2_5_VL,
            QWEN3_VL,
            QWEN3_VL_MOE,
            QWEN3_5,
            QWEN3_5_MOE,
            QWEN2_5_OMNI,
            QWEN3_OMNI_MOE,
            GLM4V,
            GLM4V_MOE,
            GLM46V,
            GLM_OCR,
            INTERNVL,
            IDEFICS3,
            SMOLVLM,
            PERCEPTION_LM,
            MOLMO2,
            APERTUS1P5,
            LLAMA4,
            EXAONE4_5,
            KIMI_K25,
            STEP3P7,
            ERNIE4_5_VL,
            PADDLEOCR_VL,
            LIGHTON_OCR,
            GOT_OCR2,
            OVIS2,
            LFM2_VL,
            MINICPM_V4_6,
            MINICPM_V4_7,
        )
    }
)

__all__ = [
    "FAMILIES",
    "Family",
    "Grid",
    "LayerAdditions",
    "Parts",
    "Run",
    "VisionParts",
    "family_of",
    "find_runs",
    "load_processor",
    "same_features",
    "visual_mask",
]


def family_of(model: nn.Module) -> Family:
    """The family of a model, by its `config.model_type`.

    Raises
    ------
    UnsupportedModelError
        When it is not one that foveate knows; the message says why, or what the default finds and what it lacks.
    """
    model_type: Any = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    known = f"foveate knows {', '.join(FAMILIES)}"
    if model_type in REFUSED:
        raise UnsupportedModelError(f"model type {model_type!r} is not supported: {REFUSED[model_type]}; {known}")
    if model_type is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no config.model_type; {known}")
    try:
        Family(model_type, model_type, "").parts(model)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"model type {model_type!r} is not supported: {error}; {known}") from None
    raise UnsupportedModelError(
        f"model type {model_type!r} is not supported: its parts are found by the default, but nobody has tested it; "
        f"to try it pass family=foveate.families.Family({model_type!r}, 'title', 'hub id') to foveate.attach; {known}"
    )


def __getattr__(name: str) -> Any:
    if name == "load_processor":  # loads transformers' processors only when asked for
        from foveate.families.processors import load_processor

        return load_processor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
