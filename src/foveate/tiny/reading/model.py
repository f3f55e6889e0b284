"""The architecture of the model that reads while it speaks, its words, its tokenizer and its processor."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from foveate.tiny.reading.recipe import ReadingRecipe
from foveate.tiny.vocabulary import (
    ASSISTANT,
    BOS,
    CHAT_TEMPLATE,
    COLOURS,
    DIGITS,
    EOS,
    IMAGE,
    KINDS,
    NEWLINE,
    PAD,
    PLURALS,
    SIZES,
    UNKNOWN,
    USER,
)

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

SIZE, PATCH = 256, 16
GRID = SIZE // PATCH
TOKENS = GRID**2
# Capital letters that no one takes for a digit; "a" is left out because it is an article too.
VOWELS, CONSONANTS = "euy", "fhklmnprtvwx"
SIGN_LETTERS = tuple(sorted(VOWELS + CONSONANTS))
ARROWS = ("up", "down", "left", "right")
GLYPHS = (*DIGITS, *SIGN_LETTERS, *ARROWS)
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")
ROWS = ("top", "middle", "bottom")

_WORDS = (
    "what colour colours color is the shape shapes of object objects thing things how many are there a an does sign "
    "say says with from where size number word letter on in it row column every each list name read spell follow "
    "arrow arrows two three four one zero compare digit by which to and then or left right above below top bottom "
    "middle up down yes no smaller larger as large higher lower further same different first second third fourth "
    "fifth sixth last next image picture describe begin end before after frame frames video images both between "
    "near far corner centre moves move enters leaves appears stays still faster slower start starts ends point "
    "points show shows all any not only most fewest more less than nothing ? , ."
)


def words() -> list[str]:
    """The vocabulary in id order: specials, words, digits, then single letters so that any text has ids."""
    out = [PAD, BOS, EOS, IMAGE, UNKNOWN, USER, ASSISTANT, NEWLINE]
    out += [*_WORDS.split(), *KINDS, *PLURALS.values(), *SIZES, *COLOURS, *DIGITS]
    for letter in "abcdefghijklmnopqrstuvwxyz":
        out += [letter, "##" + letter]
    out = list(dict.fromkeys(out))
    while len(out) % 32:
        out.append(f"<extra{len(out)}>")
    return out


WORD_ID = {word: index for index, word in enumerate(words())}


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, one token for each digit, letters for the rest; `<s>` is put in front, case is ignored."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(WORD_ID, unk_token=UNKNOWN, continuing_subword_prefix="##"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    core.decoder = decoders.WordPiece(prefix="##")
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, WORD_ID[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE, USER, ASSISTANT, NEWLINE],
        padding_side="left",
        model_max_length=2048,
    )


def processor(size: int = SIZE, patch: int = PATCH) -> LlavaProcessor:
    """LLaVA processor: resize to `size` pixels, scale to -1..1, one `<image>` becomes (size/patch)² ids."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(
        do_resize=True,
        size={"height": size, "width": size},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


_PIECES = re.compile(r"\d|[^\W\d]+|[^\w\s]")


def text_ids(text: str) -> list[int]:
    """Ids of a question or answer by dictionary look-up, as the tokenizer gives them (training's fast path)."""
    return [WORD_ID[piece] for piece in _PIECES.findall(text)]


def pieces(text: str) -> list[str]:
    """The words, digits and signs that `text_ids` looks up, in order."""
    return _PIECES.findall(text)


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
