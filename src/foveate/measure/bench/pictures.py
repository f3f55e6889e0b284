"""Prompts for models whose shapes only their processor knows: pictures of noise, as many and as large as it takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from foveate.measure.loading import LoadedModel

if TYPE_CHECKING:
    from foveate.measure.bench.prompts import BenchPrompt

SIDE = 448  # pixels of a first picture
TRIES = 3
WORD = "what "


def processed(loaded: LoadedModel, visual: int | None, text: int, batch: int, seed: int) -> BenchPrompt:
    """Return a batch made by the processor; numbers of tokens are those that come of it.

    Parameters
    ----------
    loaded : LoadedModel
        With its processor.
    visual, text, batch, seed : int
        As `prompts.make_prompt` takes them.
    """
    from foveate.measure.bench.prompts import BenchPrompt

    generator = np.random.default_rng(seed)
    side, count = SIDE, 1
    for _ in range(TRIES if visual is not None else 1):
        found = _count(loaded, side, count, generator)
        if visual is None or abs(found - visual) <= 0.02 * visual:
            break
        smaller = max(32, round(side * math.sqrt(visual / found)))
        if _count(loaded, smaller, count, generator) == found:  # every picture makes as many
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
