"""The words of the scenes, the tokenizer made of them, and the processor."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring")
KINDS = (*SHAPES, "sign")
SIZES = ("small", "medium", "large")
COLOURS = {
    "red": (208, 36, 36),
    "green": (44, 158, 58),
    "blue": (40, 72, 212),
    "yellow": (240, 214, 40),
    "purple": (138, 44, 172),
    "orange": (244, 130, 22),
    "cyan": (44, 200, 214),
    "white": (240, 240, 238),
}
DIGITS = tuple("0123456789")
PLURALS = {kind: kind + ("es" if kind.endswith("ss") else "s") for kind in KINDS}

PAD, BOS, EOS, IMAGE, UNKNOWN = "<pad>", "<s>", "</s>", "<image>", "<unk>"
USER, ASSISTANT, NEWLINE = "USER:", "ASSISTANT:", "\n"
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


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER:' if message['role'] == 'user' else 'ASSISTANT:' }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %} {% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def processor(size: int = 256, patch: int = 16) -> LlavaProcessor:
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
