"""Prompts with a wanted number of visual tokens: random words, random pixels, of the shapes that a model takes.

Families whose pictures have known shapes are given them straight from the config, without a processor; any other gets
pictures through its processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.families.sample_pictures import SamplePictures, sample_pictures
from foveate.measure.loading import LoadedModel, LoadError

FIRST_WORD = 10  # ids under it are often special
MANY_PIXELS = 1 << 28  # from which on a host would be long at making them


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
    sample = sample_pictures(model.config, visual or usual_tokens(model.config))
    if sample is None:
        from foveate.measure.bench.pictures import processed

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
    """Return how many visual tokens a sample would really have; None where only a processor can tell."""
    sample = sample_pictures(config, visual)
    return None if sample is None else sample.tokens


def usual_tokens(config: Any) -> int:
    """Return the visual tokens of one picture of the usual size."""
    vision = getattr(config, "vision_config", None)
    pixels, patch = (getattr(vision, name, None) for name in ("image_size", "patch_size"))
    if isinstance(pixels, int) and isinstance(patch, int):  # some have a pair of each
        return int((pixels // patch) ** 2)
    return 576


def _words(model: Any, sample: SamplePictures, text: int, batch: int, generator: torch.Generator) -> Tensor:
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
