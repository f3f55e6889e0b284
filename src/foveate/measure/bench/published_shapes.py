"""The published sizes of four models, written out, to be built with random weights: speed does not depend on weights.

A narrower or shallower copy keeps the width of a head and the ratios of the rest: query to key heads, the MLP, and the
vision encoder beside the language model.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from foveate.measure.loading import LoadError
from foveate.torch_state import own_randomness

NARROW_VOCABULARY = 4096  # of a narrower copy: the head reads one token a step, and its size would decide
LEAST_BLOCKS = 4  # of a shallower copy's vision encoder, as many as GlimpsePrune reads
QWEN_IDS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
VICUNA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
LLAVA = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_seq_length": 576}


@dataclass(frozen=True)
class Shape:
    """Sizes of a published model.

    Parameters
    ----------
    name
        As `--random-weights` takes it.
    checkpoint
        Whose config these sizes are.
    model_type
        Of transformers.
    text, vision, rest
        Values of the language model's config, the vision encoder's and the whole model's.
    """

    name: str
    checkpoint: str
    model_type: str
    text: dict[str, Any]
    vision: dict[str, Any]
    rest: dict[str, Any] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return int(self.text["num_hidden_layers"])

    def resized(self, layers: int | None = None, width: int | None = None) -> Shape:
        """Return the shape with fewer decoder layers, or narrower, its vision encoder in proportion.

        Parameters
        ----------
        layers
            Decoder layers, at least 2.
        width
            Hidden size of the language model, a multiple of the width of its heads.

        Raises
        ------
        LoadError
            The sizes make no model.
        """
        text, vision, rest = copy.deepcopy(self.text), copy.deepcopy(self.vision), copy.deepcopy(self.rest)
        if layers is not None:
            if not 2 <= layers <= self.depth:
                raise LoadError(f"--layers of {self.name} lies in 2 to {self.depth}, got {layers}")
            text["num_hidden_layers"] = layers
            _shallower(vision, layers / self.depth)
        if width is not None:
            head = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
            if not 0 < width <= text["hidden_size"] or width % head:
                most = text["hidden_size"]
                raise LoadError(f"--width of {self.name} is a multiple of {head} up to {most}, got {width}")
            _narrower(text, vision, rest, width, head)
        return Shape(self.name, self.checkpoint, self.model_type, text, vision, rest)

    def config(self) -> Any:
        """Return the config of transformers, without end-of-text token: decoding continues as long as is asked."""
        from transformers import AutoConfig

        text = {**self.text, "bos_token_id": None, "eos_token_id": None}
        return AutoConfig.for_model(self.model_type, text_config=text, vision_config=dict(self.vision), **self.rest)

    def build(self, device: torch.device, dtype: torch.dtype, attention: str, seed: int = 0) -> Any:
        """Return the model with random weights, made on the device and in the type that it is to have.

        Parameters
        ----------
        device, dtype
            Where and how.
        attention
            Name of the attention implementation: `sdpa`, `eager`, …
        seed
            Of the weights.

        Raises
        ------
        LoadError
            There is no such attention implementation here, or not enough memory.
        """
        from transformers import AutoModelForImageTextToText

        try:
            with own_randomness(), torch.device(device):
                torch.manual_seed(seed)
                model = AutoModelForImageTextToText.from_config(
                    self.config(), dtype=dtype, attn_implementation=attention
                )
        except (ImportError, ValueError) as error:
            raise LoadError(
                f"no attention '{attention}' for {self.name} here: {str(error).splitlines()[0]}"
            ) from error
        except torch.OutOfMemoryError as error:
            raise LoadError(f"{self.name} in {dtype} does not fit on {device}; try --layers or --width") from error
        model.generation_config.eos_token_id = None
        return model.to(device).eval()


def _shallower(vision: dict[str, Any], share: float) -> None:
    """Fewer blocks, at least four; those with a part of their own lie at the same shares of the depth."""
    key = "depth" if "depth" in vision else "num_hidden_layers"
    before = vision[key]
    vision[key] = min(before, max(LEAST_BLOCKS, round(before * share)))
    for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        if name in vision:
            places = {max(0, math.ceil((place + 1) * vision[key] / before) - 1) for place in vision[name]}
            vision[name] = sorted(places)


def _narrower(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any], width: int, head: int) -> None:
    share = width / text["hidden_size"]
    groups = text["num_attention_heads"] // text["num_key_value_heads"]
    heads = text["num_attention_heads"] * width // text["hidden_size"]
    keys = next(number for number in range(max(1, heads // groups), 0, -1) if heads % number == 0)
    text.update(
        hidden_size=width,
        intermediate_size=max(16, round(text["intermediate_size"] * share / 16) * 16),
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=NARROW_VOCABULARY,
    )
    name = "num_heads" if "num_heads" in vision else "num_attention_heads"
    each = vision["hidden_size"] // vision[name]
    vision[name] = max(1, round(vision[name] * share))
    wide = vision[name] * each / vision["hidden_size"]
    vision["intermediate_size"] = max(16, round(vision["intermediate_size"] * wide / 16) * 16)
    vision["hidden_size"] = vision[name] * each
    if "out_hidden_size" in vision:
        vision["out_hidden_size"] = width
    if "projection_dim" in vision:
        vision["projection_dim"] = max(16, round(vision["projection_dim"] * wide))
    ids = sorted(name for name in rest if name.endswith(("token_id", "token_index")))
    values = sorted({rest[name] for name in ids})
    rest.update({name: NARROW_VOCABULARY - 1 - values.index(rest[name]) for name in ids})


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(
            "qwen2.5-vl-7b",
            "Qwen/Qwen2.5-VL-7B-Instruct",
            "qwen2_5_vl",
            {
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
                "max_position_embeddings": 128000,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
            },
            {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
                "out_hidden_size": 3584,
                "in_channels": 3,
            },
            {**QWEN_IDS, "vision_end_token_id": 151653},
        ),
        Shape(
            "llava-1.5-7b",
            "llava-hf/llava-1.5-7b-hf",
            "llava",
            VICUNA,
            CLIP,
            {**LLAVA, "image_token_index": 32000},
        ),
        Shape(
            "llava-1.6-7b",
            "llava-hf/llava-v1.6-vicuna-7b-hf",
            "llava_next",
            VICUNA,
            CLIP,
            {
                **LLAVA,
                "image_token_index": 32000,
                "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            },
        ),
        Shape(
            "qwen3-vl-8b",
            "Qwen/Qwen3-VL-8B-Instruct",
            "qwen3_vl",
            {
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151936,
                "max_position_embeddings": 262144,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {
                    "rope_type": "default",
                    "mrope_interleaved": True,
                    "mrope_section": [24, 20, 20],
                    "rope_theta": 5e6,
                },
            },
            {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "patch_size": 16,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [8, 16, 24],
                "out_hidden_size": 4096,
                "in_channels": 3,
            },
            {**QWEN_IDS, "vision_end_token_id": 151653},
        ),
    )
}


def shape_named(name: str) -> Shape:
    """Return a published shape.

    Raises
    ------
    LoadError
        No such name; the message lists what there is.
    """
    if name not in SHAPES:
        raise LoadError(f"no shape '{name}'; there are {', '.join(SHAPES)}")
    return SHAPES[name]
