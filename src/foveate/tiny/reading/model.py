"""The architecture of the model that reads while it speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveate.tiny.reading.lexicon import PATCH, SIZE, WORD_ID
from foveate.tiny.reading.recipe import ReadingRecipe
from foveate.tiny.vocabulary import BOS, EOS, IMAGE, PAD

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration


def build(recipe: ReadingRecipe, layers: int | None = None, size: int = SIZE) -> LlavaForConditionalGeneration:
    """A fresh LLaVA: CLIP tower, two-layer projector, Llama with grouped heads and tied embeddings.

    Parameters
    ----------
    recipe
    layers
        Decoder layers; by default those of the recipe.
    size
        Image side in pixels; (size / 16)² visual tokens.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=recipe.vision_hidden,
        intermediate_size=4 * recipe.vision_hidden,
        num_hidden_layers=recipe.vision_layers,
        num_attention_heads=recipe.vision_heads,
        image_size=size,
        patch_size=PATCH,
        projection_dim=recipe.vision_hidden,
    )
    text = LlamaConfig(
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=layers or recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.groups,
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
