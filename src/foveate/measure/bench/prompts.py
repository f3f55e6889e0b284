"""Prompts with a wanted number of visual tokens: random words, random pixels, of the shapes that a model takes.

Families whose pictures have known shapes are given them straight from the config, without a processor; any other gets
pictures through its processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.measure.loading import LoadedModel, LoadError

FIRST_WORD = 10  # ids under it are often special
NEAR = 0.03  # share of the wanted tokens by which fewer pictures may miss them
ASPECT = 2.0  # a picture's longer side over the shorter, at most, where its number of tokens allows
MANY_PIXELS = 1 << 28  # from which on a host would be long at making them
SIDES = (28, 1344, 28)  # pixels that are tried for LLaVA-NeXT, whose numbers of tokens follow no formula


@dataclass(frozen=True)
class Sample:
    """One sample's pictures.

    Parameters
    ----------
    tokens : int
        Visual tokens, separators among them.
    runs : list of int
        Visual tokens of each picture.
    pixels : tuple of int
        Shape of the pixels of all its pictures.
    sizes : list of list of int
        What the model wants to know of each beside the pixels; empty for none.
    """

    tokens: int
    runs: list[int]
    pixels: tuple[int, ...]
    sizes: list[list[int]]


def _llava(config: Any, wanted: int) -> Sample:
    vision = config.vision_config
    each = (vision.image_size // vision.patch_size) ** 2
    count = max(1, round(wanted / each))
    return Sample(count * each, [each] * count, (count, 3, vision.image_size, vision.image_size), [])


def _qwen(config: Any, wanted: int) -> Sample:
    vision = config.vision_config
    high, wide = _sides(wanted)
    merge, temporal = vision.spatial_merge_size, vision.temporal_patch_size
    patch = 3 * temporal * vision.patch_size**2
    return Sample(high * wide, [high * wide], (high * wide * merge**2, patch), [[1, high * merge, wide * merge]])


def _sides(wanted: int) -> tuple[int, int]:
    """Rows and columns of about so many cells: exactly, where a shape that is not too long gives that."""
    square = max(1, math.isqrt(wanted))
    for high in range(square, max(1, math.ceil(math.sqrt(wanted / ASPECT))) - 1, -1):
        if wanted % high == 0:
            return high, wanted // high
    return square, max(1, round(wanted / square))


def _llava_next(config: Any, wanted: int) -> Sample:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    from foveate.families.llava_next import large_grid

    pixels = config.vision_config.image_size
    side = pixels // config.vision_config.patch_size
    lengths: dict[int, list[int]] = {}
    scale = pixels / 336
    for high in range(*SIDES):
        for wide in range(high, SIDES[1], SIDES[2]):  # the squarest shape of a number comes last
            size = [max(1, round(high * scale)), max(1, round(wide * scale))]
            lengths[side * side + large_grid(config, size, side).length] = size
    choices = (
        (max(0.0, abs(count * length - wanted) - NEAR * wanted), count, abs(count * length - wanted), length)
        for count in range(1, wanted // side**2 + 2)
        for length in lengths
    )
    _, count, _, length = min(choices)
    size = lengths[length]
    tiles = image_size_to_num_patches(size, config.image_grid_pinpoints, pixels)
    return Sample(count * length, [length] * count, (count, tiles, 3, pixels, pixels), [size] * count)


MAKERS: dict[str, Callable[[Any, int], Sample]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
}
SIZES = {"llava_next": "image_sizes", "qwen2_vl": "image_grid_thw", "qwen2_5_vl": "image_grid_thw"}
SIZES["qwen3_vl"] = "image_grid_thw"


@dataclass(frozen=True)
class BenchPrompt:
    """A batch that a model takes.

    Parameters
    ----------
    inputs : dict
        Arguments of the forward pass, on the model's device.
    visual : int
        Visual tokens of a sample, separators among them.
    text : int
        Other tokens of a sample.
    pictures : int
        Of a sample.
    """

    inputs: dict[str, Any]
    visual: int
    text: int
    pictures: int


def make_prompt(loaded: LoadedModel, visual: int | None, text: int, batch: int, seed: int = 0) -> BenchPrompt:
    """Return a batch of equal samples with about so many visual tokens.

    Parameters
    ----------
    loaded : LoadedModel
        Its processor may be missing (None) where the family's shapes are known.
    visual : int or None
        Visual tokens wanted of a sample; none: those of one picture of the usual size.
    text : int
        Text tokens wanted; a processor's prompt has some of its own.
    batch : int
        Samples.
    seed : int
        Of words and pixels.
    """
    model = loaded.model
    vision = getattr(model.config, "vision_config", None)
    known = model.config.model_type in MAKERS and getattr(vision, "model_type", "") != "pixtral"
    if not known:
        from foveate.measure.bench.pictures import processed

        return processed(loaded, visual, text, batch, seed)
    if visual is None:
        visual = _usual(model.config)
    sample = MAKERS[model.config.model_type](model.config, visual)
    generator = torch.Generator().manual_seed(seed)
    ids = _words(model, sample, text, batch, generator)
    marks = ids == model.config.image_token_id
    pixels = _pixels(sample.pixels, batch, generator)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if sample.sizes:
        inputs[SIZES[model.config.model_type]] = torch.tensor(sample.sizes * batch)
    if model.config.model_type.startswith("qwen"):
        inputs["mm_token_type_ids"] = marks.to(torch.int)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    inputs["pixel_values"] = pixels.to(model.device, model.dtype)
    return BenchPrompt(inputs, sample.tokens, ids.shape[1] - sample.tokens, len(sample.runs))


def tokens_of(config: Any, visual: int) -> int | None:
    """Return how many visual tokens a sample would really have; None where only a processor can tell."""
    return MAKERS[config.model_type](config, visual).tokens if config.model_type in MAKERS else None


def _usual(config: Any) -> int:
    vision = config.vision_config
    if hasattr(vision, "image_size") and hasattr(vision, "patch_size"):
        return int((vision.image_size // vision.patch_size) ** 2)
    return 576


def _words(model: Any, sample: Sample, text: int, batch: int, generator: torch.Generator) -> Tensor:
    """(B, L) ids: a fifth of the words, the pictures, each with what must stand around it, the rest."""
    config = model.config
    special = {getattr(config, name, None) for name in dir(config) if name.endswith(("token_id", "token_index"))}
    special = {one for one in special if isinstance(one, int)}
    around = [getattr(config, f"vision_{end}_token_id", None) for end in ("start", "end")]
    frame = all(isinstance(one, int) for one in around)
    left = text - 2 * len(sample.runs) * frame
    if left < 2:
        least = text - left + 2
        raise LoadError(f"--text {text} is too short: {len(sample.runs)} pictures need {least} tokens of text or more")
    ordinary = torch.tensor([one for one in range(config.get_text_config().vocab_size) if one not in special])
    ordinary = ordinary[min(FIRST_WORD, len(ordinary) // 2) :]
    words = ordinary[torch.randint(len(ordinary), (batch, left), generator=generator)]
    middle: list[int] = []
    for run in sample.runs:
        marks = [config.image_token_id] * run
        middle += [around[0], *marks, around[1]] if frame else marks
    first = max(1, left // 5)
    pictures = torch.tensor([middle]).expand(batch, -1)
    return torch.cat([words[:, :first], pictures, words[:, first:]], 1)


def _pixels(sample: tuple[int, ...], batch: int, generator: torch.Generator) -> Tensor:
    """Noise of another level in each part of a picture; of a large batch all samples have the same pictures."""
    different = batch if batch * math.prod(sample) < MANY_PIXELS else 1
    shape = (different * sample[0], *sample[1:])
    levels = torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
    pixels = torch.randn(shape, generator=generator) + levels
    return pixels.repeat(batch // different, *[1] * (len(shape) - 1))
