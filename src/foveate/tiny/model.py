"""The architecture of the embedded model, its shipped weights, and the prompt it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foveate.tiny.drawing import PATCH
from foveate.tiny.scenes import SIZE
from foveate.tiny.vocabulary import BOS, EOS, IMAGE, PAD, WORD_ID

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

WEIGHTS = Path(__file__).parent / "weights"
MANY = WEIGHTS / "many.safetensors"  # what was changed in the language model for clips and large images


def prompt(question: str) -> str:
    """The prompt for a question, for the processor: `USER: <image>` and the question, then `ASSISTANT:`."""
    return f"USER: {IMAGE}\n{question} ASSISTANT:"


@dataclass(frozen=True)
class Shape:
    """Sizes of the embedded model; the defaults are those of the shipped weights."""

    hidden: int = 192
    mlp: int = 512
    heads: int = 6
    groups: int = 2
    """Heads of keys and values."""
    layers: int = 12
    vision_hidden: int = 160
    vision_layers: int = 4
    vision_heads: int = 5


def build(shape: Shape | None = None, size: int = SIZE) -> LlavaForConditionalGeneration:
    """A fresh LLaVA: CLIP tower, two-layer projector, Llama with grouped heads and tied embeddings.

    Parameters
    ----------
    shape
        By default that of the shipped weights.
    size
        Image side in pixels; (size / 16)² visual tokens.
    """
    shape = shape or Shape()
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=4 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=size,
        patch_size=PATCH,
        projection_dim=shape.vision_hidden,
    )
    text = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        vocab_size=len(WORD_ID),
        max_position_embeddings=2048,
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
        image_seq_length=(size // PATCH) ** 2,
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


def as_changes(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A change (out, in) of a weight in 4 bits a number: `change`, two a byte (out, in / 2), and `scale` (out, 1)."""
    scale = (weight.abs().amax(1, keepdim=True) / 7).clamp(min=1e-7).half()
    level = ((weight / scale.float()).round().clamp(-8, 7) + 8).to(torch.uint8)
    return {"change": level[:, ::2] * 16 + level[:, 1::2], "scale": scale}


@torch.no_grad()
def merge(model: LlavaForConditionalGeneration, changes: dict[str, torch.Tensor]) -> None:
    """Add changes to weights of the language model, and replace rows of its embedding.

    Parameters
    ----------
    model
    changes
        `NAME.change` and `NAME.scale` for a linear of the language model, see `as_changes`; `words` (n,), ids, and
        `rows` (n, D), their embeddings.
    """
    language = model.model.language_model
    for name in [key.removesuffix(".change") for key in changes if key.endswith(".change")]:
        both, weight = changes[f"{name}.change"], language.get_submodule(name).weight
        level = torch.stack([both >> 4, both & 15], -1).flatten(1).float() - 8
        weight += (level * changes[f"{name}.scale"].float()).to(weight)
    rows = language.embed_tokens.weight
    rows[changes["words"]] = changes["rows"].to(rows)


def load(
    dtype: torch.dtype = torch.float32, many: bool = False
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The shipped model, in eval mode, and its processor; no network.

    Parameters
    ----------
    dtype
        Data type of the weights once loaded (they are stored as float16).
    many
        The weights that were trained further, on clips of eight frames and large images in four tiles.
    """
    from safetensors.torch import load_file
    from transformers import LlavaForConditionalGeneration

    from foveate.families import load_processor

    if not (WEIGHTS / "model.safetensors").is_file():
        raise FileNotFoundError(f"{WEIGHTS} holds no weights; `foveate train tiny` makes them")
    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32 if many else dtype).eval()
    processor = load_processor(WEIGHTS)
    if many:
        merge(model, load_file(MANY))
        # A prompt with a clip is longer than one with a scene; the rotary embedding has no end.
        model.config.text_config.max_position_embeddings = processor.tokenizer.model_max_length = 4096
    return model.to(dtype), processor
