"""The words of the scenes, the tokenizer made of them, and the processor."""

from __future__ import annotations

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
NEXT_DIGITS = tuple("##" + digit for digit in DIGITS)  # a second digit has an embedding of its own
PLURALS = {kind: kind + ("es" if kind.endswith("ss") else "s") for kind in KINDS}

PAD, BOS, EOS, IMAGE, UNKNOWN = "<pad>", "<s>", "</s>", "<image>", "<unk>"
USER, ASSISTANT, NEWLINE = "USER:", "ASSISTANT:", "\n"
_WORDS = (
    "what colour is the shape of object objects thing how many are there a an does sign say with from where size "
    "number color in it on left right above below top bottom yes no which read relative to image describe ? , ."
)


def words() -> list[str]:
    """The vocabulary in id order: specials, words, digits, then single letters so that any text has ids."""
    out = [PAD, BOS, EOS, IMAGE, UNKNOWN, USER, ASSISTANT, NEWLINE]
    out += [*_WORDS.split(), *KINDS, *PLURALS.values(), *SIZES, *COLOURS, *DIGITS, *NEXT_DIGITS]
    for letter in "abcdefghijklmnopqrstuvwxyz":
        out += [letter, "##" + letter]
    out = list(dict.fromkeys(out))
    while len(out) % 32:
        out.append(f"<extra{len(out)}>")
    return out


WORD_ID = {word: index for index, word in enumerate(words())}


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, digit by digit, letters for the rest; `<s>` is put in front, spaces and case are ignored."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(WORD_ID, unk_token=UNKNOWN, continuing_subword_prefix="##"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
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
        model_max_length=1024,
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


def processor(size: int = 224, patch: int = 16) -> LlavaProcessor:
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


def question_ids(text: str) -> list[int]:
    """Ids of a question or answer by dictionary look-up, as the tokenizer gives them (training's fast path)."""
    ids = []
    for word in text.replace("?", " ?").split():
        if word.isdigit():
            ids += [WORD_ID[word[0]], *(WORD_ID["##" + digit] for digit in word[1:])]
        else:
            ids.append(WORD_ID[word])
    return ids
