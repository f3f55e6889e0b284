"""The architecture of the embedded model, its shipped weights, and the prompt it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foveate.tiny.vocabulary import BOS, EOS, IMAGE, PAD, WORD_ID

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

WEIGHTS = Path(__file__).parent / "weights"


def prompt(question: str) -> str:
    """The prompt for a question, for the processor: `USER: <image>` and the question, then `ASSISTANT:`."""
    return f"USER: {IMAGE}\n{question} ASSISTANT:"


def build(
    hidden: int = 128, layers: int = 12, heads: int = 4, vision_layers: int = 4, size: int = 224, patch: int = 16
) -> LlavaForConditionalGeneration:
    """A fresh LLaVA: CLIP tower, two-layer projector, Llama with tied embeddings.

    Parameters
    ----------
    hidden
        Width of tower and language model.
    layers, vision_layers
        Decoder layers and tower layers.
    heads
        Attention heads of both.
    size, patch
        Image and patch side in pixels; (size / patch)² visual tokens.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=vision_layers,
        num_attention_heads=heads,
        image_size=size,
        patch_size=patch,
        projection_dim=hidden,
    )
    text = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=len(WORD_ID),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=WORD_ID[BOS],
        eos_token_id=WORD_ID[EOS],
        pad_token_id=WORD_ID[PAD],
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=WORD_ID[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(size // patch) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.tie_weights()
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.normal_(0, 0.1)
    model.generation_config.eos_token_id = WORD_ID[EOS]
    model.generation_config.pad_token_id = WORD_ID[PAD]
    model.generation_config.bos_token_id = WORD_ID[BOS]
    return model


def load(dtype: torch.dtype = torch.float32) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The shipped model, in eval mode, and its processor; no network.

    Parameters
    ----------
    dtype
        Data type of the weights once loaded (they are stored as float16).
    """
    from transformers import LlavaForConditionalGeneration

    from foveate.families import load_processor

    if not (WEIGHTS / "model.safetensors").is_file():
        raise FileNotFoundError(f"{WEIGHTS} holds no weights; `foveate train tiny` makes them")
    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=dtype).eval()
    return model, load_processor(WEIGHTS)
