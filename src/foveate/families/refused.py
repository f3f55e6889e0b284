"""Why foveate refuses the other model types that `AutoModelForImageTextToText` loads."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CROSS = "its decoder reads images by cross-attention, so that there are no visual tokens in its sequence to remove"
ENCODER = "it is an encoder-decoder: its decoder attends to what an encoder made, and has no visual tokens of its own"
QUERIES = "a Q-Former has already made a few dozen tokens of each image, and there is little left to remove"
PER_LAYER = "each of its layers takes its own input for every token (per-layer embeddings), which foveate cannot cut"
INDEXED = "its attention looks only at tokens that an index chooses from the cache, and the index counts removed ones"
CONVOLUTIONS = "convolutions inside its layers take masks of their own, one entry a token, which foveate cannot cut"
STATES = "its decoder has layers with a running state in the place of attention, of a kind that nobody has tested"
ADDED = "features are added to its visual tokens between the layers (deep-stack), in a way that nobody has tested"
LOOPED = "some of its layers run over the sequence again and again, each time with a cache of their own"
CODES = "its images are codes of the vocabulary and not features of an encoder, which nobody has tested"

# of these `family_of` says what the default finds in the model, and how to try it
UNTESTED = frozenset(
    {
        "aria",
        "cosmos3_edge",
        "deepseek_ocr2",
        "deepseek_vl_hybrid",
        "fast_vlm",
        "fuyu",
        "glmga",
        "hunyuan_vl",
        "hyperclovax_vision_v2",
        "idefics2",
        "janus",
        "kosmos-2.5",
        "muse_glimmer",
        "muse_spark",
        "pixtral",
        "pp_chart2table",
        "qianfan_ocr",
        "shieldgemma2",
        "video_llama_3",
        "video_llava",
    }
)

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "blip": CROSS,
        "blip-2": QUERIES,
        "chameleon": CODES,
        "cohere_compass": ADDED,
        "cosmos3_omni": ADDED,
        "diffusion_gemma": "it writes its answer by diffusion, all tokens at once and over and over",
        "dots3_note": INDEXED,
        "emu3": CODES,
        "evolla": CROSS,
        "florence2": ENCODER,
        "git": "it puts images before the prompt, without placeholder tokens that would say where",
        "glm5_next": INDEXED,
        "granite4_vision": ADDED,
        "granite_docling": ADDED,
        "hy_v4_vl": INDEXED,
        "idefics": CROSS,
        "inkling2": CONVOLUTIONS,
        "inkling2_loop": LOOPED,
        "inkling_mm_model": CONVOLUTIONS,
        "instructblip": QUERIES,
        "instructblipvideo": QUERIES,
        "kosmos-2": "a resampler has already made 64 tokens of each image, and there is little left to remove",
        "lfm3_vl": STATES,
        "minicpm_ocr": STATES,
        "minimax_m3_vl": INDEXED,
        "mistral4": "this is the language model without its vision encoder",
        "mistral_large4": INDEXED,
        "mllama": CROSS,
        "nemotron_h_omni": STATES,
        "pi0": "it is a policy for robots and gives actions instead of words",
        "pix2struct": ENCODER,
        "pp_formulanet": ENCODER,
        "qwen4_exp": PER_LAYER,
        "t5gemma2": ENCODER,
        "udop": ENCODER,
        "unlimited_ocr": "its sliding attention keeps the first tokens of the sequence, in a cache of its own",
        "vision-encoder-decoder": ENCODER,
    }
)
