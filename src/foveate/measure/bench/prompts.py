"""Prompts with a wanted number of visual tokens: random words, random pixels, of the shapes that a model takes.

Families whose images have known shapes are given them straight from the config, without a processor; any other gets
images through its processor.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.errors import UnsupportedModelError
from foveate.measure.loading import LoadedModel, LoadError

FIRST_WORD = 10  # ids under it are often special
MANY_PIXELS = 1 << 28  # from which on a host would be long at making them


@dataclass(frozen=True)
class BenchPrompt:
    """A batch that a model takes.

    Parameters
    ----------
    inputs
        Arguments of the forward pass, on the model's device.
    visual
        Visual tokens of a sample, separators among them.
    text
        Other tokens of a sample.
    pictures
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
    loaded
        Its processor may be missing (None) where the family's shapes are known.
    visual
        Visual tokens wanted of a sample; none: those of one image of the usual size.
    text
        Text tokens wanted; a processor's prompt has some of its own.
    batch
        Samples.
    seed
        Of words and pixels.
    """
    model = loaded.model
    sample = sample_pictures(model.config, visual or usual_tokens(model.config))
    if sample is None:
        return processed(loaded, visual, text, batch, seed)
    generator = torch.Generator().manual_seed(seed)
    ids = _words(model, sample, text, batch, generator)
    marks = ids == model.config.image_token_id
    pixels = _pixels(sample.pixels, batch, generator)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if sample.sizes:
        inputs[sample.sizes_name] = torch.tensor(sample.sizes * batch)
    if sample.types:
        inputs["mm_token_type_ids"] = marks.to(torch.int)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    inputs["pixel_values"] = pixels.to(model.device, model.dtype)
    return BenchPrompt(inputs, sample.tokens, ids.shape[1] - sample.tokens, len(sample.runs))


def tokens_of(config: Any, visual: int) -> int | None:
    """Return how many visual tokens a sample would really have; None where only a processor knows."""
    sample = sample_pictures(config, visual)
    return None if sample is None else sample.tokens


def usual_tokens(config: Any) -> int:
    """Return the visual tokens of one image of the usual size."""
    vision = getattr(config, "vision_config", None)
    pixels, patch = (getattr(vision, name, None) for name in ("image_size", "patch_size"))
    if isinstance(pixels, int) and isinstance(patch, int):  # some have a pair of each
        return int((pixels // patch) ** 2)
    return 576


def _words(model: Any, sample: SamplePictures, text: int, batch: int, generator: torch.Generator) -> Tensor:
    """(B, L) ids: a fifth of the words, the images, each with what must stand around it, the rest."""
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
    """Noise of another level in each part of an image; of a large batch all samples have the same images."""
    different = batch if batch * math.prod(sample) < MANY_PIXELS else 1
    shape = (different * sample[0], *sample[1:])
    levels = torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
    pixels = torch.randn(shape, generator=generator) + levels
    return pixels.repeat(batch // different, *[1] * (len(shape) - 1))


SIDE = 448  # pixels of a first image
TRIES = 3
WORD = "what "


def processed(loaded: LoadedModel, visual: int | None, text: int, batch: int, seed: int) -> BenchPrompt:
    """Return a batch made by the processor; numbers of tokens are those that come of it.

    Parameters
    ----------
    loaded
        With its processor.
    visual, text, batch, seed
        As `prompts.make_prompt` takes them.
    """

    generator = np.random.default_rng(seed)
    side, count = SIDE, 1
    for _ in range(TRIES if visual is not None else 1):
        found = _count(loaded, side, count, generator)
        if visual is None or abs(found - visual) <= 0.02 * visual:
            break
        smaller = max(32, round(side * math.sqrt(visual / found)))
        if _count(loaded, smaller, count, generator) == found:  # every image makes as many
            count = max(1, round(visual * count / found))
            break
        side = smaller
    pictures = [[_picture(side, generator) for _ in range(count)] for _ in range(batch)]
    inputs = dict(loaded.inputs([WORD * max(1, text)] * batch, pictures))
    number = _visual(loaded, inputs)
    return BenchPrompt(inputs, number, inputs["input_ids"].shape[1] - number, count)


def _count(loaded: LoadedModel, side: int, count: int, generator: np.random.Generator) -> int:
    return _visual(loaded, loaded.inputs([WORD], [[_picture(side, generator) for _ in range(count)]]))


def _visual(loaded: LoadedModel, inputs: object) -> int:
    from foveate.families import family_of, visual_mask

    mask = visual_mask(family_of(loaded.model).parts(loaded.model), inputs)  # type: ignore[arg-type]
    return 0 if mask is None else int(mask[0].sum())


def _picture(side: int, generator: np.random.Generator) -> Image.Image:
    return Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))


PIXELS = ("pixel_values", "pixel_attention_mask")


@torch.inference_mode()
def encode(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs with encoded images in place of pixels.

    Raises
    ------
    UnsupportedModelError
        The model does not take encoded images.
    """
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModelError(f"{type(model).__name__} takes no encoded images: leave out --no-vision")
    takes = inspect.signature(model.get_image_features).parameters
    given = {name: value for name, value in inputs.items() if name in takes}
    found = model.get_image_features(**given)
    return {
        **{name: value for name, value in inputs.items() if name not in PIXELS},
        "mm_encoder_outputs": {"image": found},
    }


NEAR = 0.03  # share of the wanted tokens by which fewer images may miss them
ASPECT = 2.0  # an image's longer side over the shorter, at most, where its number of tokens allows
SIDES = (28, 1344, 28)  # pixels that are tried for LLaVA-NeXT, whose numbers of tokens follow no formula


@dataclass(frozen=True)
class SamplePictures:
    """One sample's images.

    Parameters
    ----------
    tokens
        Visual tokens, separators among them.
    runs
        Visual tokens of each image.
    pixels
        Shape of the pixels of all its images.
    sizes
        What the model wants to know of each beside the pixels; empty for none.
    sizes_name
        The argument of the forward pass that takes them.
    types
        Whether the model also takes `mm_token_type_ids`.
    """

    tokens: int
    runs: list[int]
    pixels: tuple[int, ...]
    sizes: list[list[int]]
    sizes_name: str = ""
    types: bool = False


def _llava(config: Any, wanted: int) -> SamplePictures:
    vision = config.vision_config
    each = (vision.image_size // vision.patch_size) ** 2
    count = max(1, round(wanted / each))
    return SamplePictures(count * each, [each] * count, (count, 3, vision.image_size, vision.image_size), [])


def _qwen(config: Any, wanted: int) -> SamplePictures:
    vision = config.vision_config
    high, wide = _sides(wanted)
    merge, temporal = vision.spatial_merge_size, vision.temporal_patch_size
    patch = 3 * temporal * vision.patch_size**2
    pixels, size = (high * wide * merge**2, patch), [1, high * merge, wide * merge]
    return SamplePictures(high * wide, [high * wide], pixels, [size], "image_grid_thw", types=True)


def _sides(wanted: int) -> tuple[int, int]:
    """Rows and columns of about so many cells: exactly, where a shape that is not too long gives that."""
    square = max(1, math.isqrt(wanted))
    for high in range(square, max(1, math.ceil(math.sqrt(wanted / ASPECT))) - 1, -1):
        if wanted % high == 0:
            return high, wanted // high
    return square, max(1, round(wanted / square))


def _llava_next(config: Any, wanted: int) -> SamplePictures:
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
    shape = (count, tiles, 3, pixels, pixels)
    return SamplePictures(count * length, [length] * count, shape, [size] * count, "image_sizes")


MAKERS: dict[str, Callable[[Any, int], SamplePictures]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
}


def sample_pictures(config: Any, wanted: int) -> SamplePictures | None:
    """One sample's images with about so many visual tokens; None where only a processor knows."""
    make = MAKERS.get(config.model_type)
    if make is None or getattr(config.vision_config, "model_type", "") == "pixtral":  # images of any size
        return None
    return make(config, wanted)
