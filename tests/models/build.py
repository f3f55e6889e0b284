"""Tiny random-weight models of the real classes, built from configs, and inputs for them made by hand."""

from __future__ import annotations

import functools

import torch
from torch import nn
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.cache_utils import Cache, CacheLayerMixin

from foveate.families import FAMILIES, family_of
from tests.models import TINY, TINY_ABSENT
from tests.models.images import IMAGE, SIZED, VIDEO, Picture, film, model_inputs, picture
from tests.models.llava_and_gemma import (
    AVERAGED,
    EAGER_ONLY,
    MORE,
    MORE_ABSENT,
    MORE_WITH_VIDEOS,
    VARIANTS,
    more,
    more_types,
)
from tests.models.qwen3_and_glm import ABSENT, NEWER, NEWER_WITH_VIDEOS, RELATIVES, UNSEEN, WITH_STATES, newer
from tests.models.sizes import CROP_VISION, LAYERS, MROPE, PAD, QWEN_IDS, QWEN_VISION, TEXT

CLIP = dict(CROP_VISION, model_type="clip_vision_model", patch_size=8, projection_dim=32)
LLAVA = dict(
    vision_config=CLIP,
    image_token_id=IMAGE,
    image_token_index=IMAGE,
    vision_feature_layer=-2,
    vision_feature_select_strategy="default",
    image_seq_length=16,
)


def _llava() -> tuple[type[PreTrainedModel], object]:
    return LlavaForConditionalGeneration, LlavaConfig(**LLAVA, text_config=dict(TEXT, model_type="llama"))


def _llava_next() -> tuple[type[PreTrainedModel], object]:
    return LlavaNextForConditionalGeneration, LlavaNextConfig(
        **LLAVA,
        text_config=dict(TEXT, model_type="mistral", sliding_window=None),
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )


def _qwen2_vl() -> tuple[type[PreTrainedModel], object]:
    vision = dict(
        depth=3,
        embed_dim=32,
        hidden_size=64,
        num_heads=4,
        mlp_ratio=2,
        patch_size=4,
        spatial_merge_size=2,
        in_channels=3,
    )
    return Qwen2VLForConditionalGeneration, Qwen2VLConfig(
        vision_config=dict(vision, temporal_patch_size=2), text_config=dict(TEXT, rope_parameters=MROPE), **QWEN_IDS
    )


def _internvl() -> tuple[type[PreTrainedModel], object]:
    return InternVLForConditionalGeneration, InternVLConfig(
        vision_config=dict(CROP_VISION, image_size=[32, 32], patch_size=[4, 4]),
        text_config=dict(TEXT, model_type="qwen2"),
        image_token_id=IMAGE,
        image_seq_length=16,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


def _idefics3() -> tuple[type[PreTrainedModel], object]:
    return Idefics3ForConditionalGeneration, Idefics3Config(**_crops())


def _smolvlm() -> tuple[type[PreTrainedModel], object]:
    return SmolVLMForConditionalGeneration, SmolVLMConfig(**_crops())


def _crops() -> dict:
    return dict(
        vision_config=dict(CROP_VISION, patch_size=4),
        text_config=dict(TEXT, model_type="llama"),
        image_token_id=IMAGE,
        scale_factor=2,
    )


def _qwen2_5_vl() -> tuple[type[PreTrainedModel], object]:
    vision = dict(QWEN_VISION, window_size=16, fullatt_block_indexes=[1])
    return Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(
        vision_config=vision, text_config=dict(TEXT, rope_parameters=MROPE), **QWEN_IDS
    )


def _qwen3_vl() -> tuple[type[PreTrainedModel], object]:
    vision = dict(QWEN_VISION, deepstack_visual_indexes=[0, 1, 2], num_position_embeddings=64)
    return Qwen3VLForConditionalGeneration, Qwen3VLConfig(
        vision_config=vision, text_config=dict(TEXT, head_dim=16, rope_parameters=MROPE), **QWEN_IDS
    )


BUILDERS = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    **{family: functools.partial(more, family, TEXT) for family in MORE},
    **{family: functools.partial(newer, family) for family in NEWER},
    **{family: tiny.make for family, tiny in TINY.items()},
}
ABSENT = {*ABSENT, *MORE_ABSENT, *TINY_ABSENT}
RELATIVES = (*RELATIVES, *(family for family, tiny in TINY.items() if tiny.relative))
UNSEEN = (*UNSEEN, *(family for family, tiny in TINY.items() if tiny.unseen))
UNPLACED = tuple(family for family in UNSEEN if not (family in TINY and TINY[family].placed))  # in `generate()`
WITH_STATES = (*WITH_STATES, *(family for family, tiny in TINY.items() if tiny.states))
EAGER_ONLY = (*EAGER_ONLY, *(family for family, tiny in TINY.items() if tiny.eager_only))
DECODER_ONLY = tuple(family for family, tiny in TINY.items() if tiny.decoder_only)
VARIANTS = (*VARIANTS, *(family for family, tiny in TINY.items() if tiny.variant))
AVERAGED = (*AVERAGED, *((family, layout) for family, tiny in TINY.items() for layout in tiny.averaged))
SEEING = tuple(family for family in BUILDERS if family not in UNSEEN)  # the vision encoder
ATTENTIVE = tuple(family for family in BUILDERS if family not in WITH_STATES)  # in every layer
WITH_VIDEOS = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    *MORE_WITH_VIDEOS,
    *NEWER_WITH_VIDEOS,
    *(family for family, tiny in TINY.items() if tiny.film),
)


def build(family: str, attention: str = "sdpa") -> PreTrainedModel:
    """One shared model a family and backend, as if just made: it knows nothing of the prompt before."""
    model = _shared(family, attention)
    for module in model.modules():
        if hasattr(module, "rope_deltas"):  # a text alone would be placed as if it went on with that prompt
            module.rope_deltas = None
    return model


def build_anew(family: str, attention: str = "sdpa") -> PreTrainedModel:
    """A model of one's own; weights large enough that attention is not uniform."""
    attention = "eager" if family in EAGER_ONLY and attention == "sdpa" else attention
    return make(*BUILDERS[family](), {"text_config": attention} if family in DECODER_ONLY else attention)


_shared = functools.cache(build_anew)


def make(cls: type[PreTrainedModel], config: object, attention: str | dict[str, str] = "sdpa") -> PreTrainedModel:
    """A model with random weights that generates without end."""
    torch.manual_seed(0)
    model = cls._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else 0.12)
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def decoder(model: PreTrainedModel) -> nn.Module:
    """The language model without its head; `get_decoder()` of some families gives it with its head."""
    return family_of(model).parts(model).decoder


def feed_forward(model: PreTrainedModel, number: int) -> nn.Module:
    """The feed-forward part of a decoder layer."""
    layer = decoder(model).layers[number]
    return layer.mlp if hasattr(layer, "mlp") else layer.feed_forward


def caches(family: str, cache: Cache) -> list[CacheLayerMixin]:
    """The layers of a cache, but for those of decoder layers that read the keys and values of others."""
    model = build(family)
    sources = family_of(model).kv_sources(family_of(model).parts(model))
    return [layer for number, layer in enumerate(cache.layers) if sources[number] == number]


def last_stage(family: str) -> int:
    """Before which layer the last stage can lie."""
    return TINY[family].last_stage if family in TINY else LAYERS - 1


ONE, TWO, NONE = [4, None, 5], [3, None, 2, None, 4], [9]
LAYOUTS = {
    "one image": [ONE],
    "two images": [TWO],
    "no image": [NONE],
    "ragged": [ONE, TWO, [6, None, 3]],
    "ragged with text only": [TWO, NONE, ONE],
    "adjacent images": [[3, None, None, 4]],
    "video": [[3, "video", 2, None, 4], NONE, [2, None, 3, "video", 3]],
}


def inputs(family: str, layout: str | list, seed: int = 1) -> dict[str, torch.Tensor]:
    """Model inputs, left padded.

    Parameters
    ----------
    layout
        A name in LAYOUTS, or for each sample its segments: a number of text tokens, None for an image or "video".
        Images differ in shape where the family has shapes.
    """
    return _batch(family, _samples(family, LAYOUTS[layout] if isinstance(layout, str) else layout, seed))


def single(family: str, layout: str, row: int) -> dict[str, torch.Tensor]:
    """Sample `row` of `inputs(family, layout)` alone, without its padding."""
    return _batch(family, [_samples(family, LAYOUTS[layout])[row]])


def pictures(family: str, layout: str) -> list[list[Picture]]:
    """Images and videos of each sample of `inputs(family, layout)`."""
    return [[one for one in sample if isinstance(one, Picture)] for sample in _samples(family, LAYOUTS[layout])]


def _samples(family: str, rows: list, seed: int = 1) -> list[list[list[int] | Picture]]:
    generator = torch.Generator().manual_seed(seed)
    samples, number = [], 0
    for row in rows:
        sample: list[list[int] | Picture] = []
        for segment in row:
            if segment is None:
                sample.append(picture(family, number, generator, row.count(None) > 1))
                number += 1
            elif segment == "video":
                sample.append(film(family, generator))
            else:
                sample.append(torch.randint(2, 80, (segment,), generator=generator).tolist())
        samples.append(sample)
    return samples


def _words(part: list[int] | Picture) -> list[int]:
    return part.ids if isinstance(part, Picture) else part


def _batch(family: str, samples: list[list[list[int] | Picture]]) -> dict[str, torch.Tensor]:
    sequences = [[word for part in sample for word in _words(part)] for sample in samples]
    length = max(map(len, sequences))
    ids = torch.tensor([[PAD] * (length - len(words)) + words for words in sequences])
    mask = torch.tensor([[0] * (length - len(words)) + [1] * len(words) for words in sequences])
    seen = [[part for part in sample if isinstance(part, Picture)] for sample in samples]
    batch = {"input_ids": ids, "attention_mask": mask, **model_inputs(family, seen), **more_types(family, ids)}
    tiny = TINY.get(family)
    if tiny.types is not None if tiny else family.startswith((*SIZED, "gemma4")):
        films = [
            [isinstance(part, Picture) and part.video for part in sample for _ in _words(part)] for sample in samples
        ]
        video = torch.tensor([[False] * (length - len(row)) + row for row in films])
        if tiny and tiny.types is not None:
            return batch | tiny.types(ids, video)
        batch["mm_token_type_ids"] = visual(batch).int() * (1 + video.int())
    return batch


def visual(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, L) bool, where the visual tokens are."""
    return (batch["input_ids"] == IMAGE) | (batch["input_ids"] == VIDEO)


def generate(model: PreTrainedModel, batch: dict[str, torch.Tensor], steps: int = 6, **options):
    """Greedy generation of `steps` tokens with the logits and the cache."""
    family = FAMILIES.get(model.config.model_type)
    reserved = () if family is None else family.reserved_ids(model.config)
    options = {"do_sample": False, "suppress_tokens": [*{IMAGE, VIDEO, *reserved}], **options}
    with torch.no_grad():
        return model.generate(
            **batch, max_new_tokens=steps, output_logits=True, return_dict_in_generate=True, **options
        )
