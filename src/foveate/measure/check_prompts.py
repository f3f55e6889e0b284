"""Prompts that a model is checked with: rendered scenes, and questions of different length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts: what it is, and a question and the images of each sample."""

    name: str
    questions: list[str]
    images: list[list[Image.Image]]


def prompts(seed: int = 0) -> list[list[Prompts]]:
    """One image; two of different shape; and a ragged batch with a sample of text alone.

    Each with what to take in its stead, in order, where a model does not take it.
    """
    from foveate import tiny

    rng = np.random.default_rng(seed)
    square, other = (tiny.make_scene(rng).pil() for _ in range(2))
    wide = other.resize((square.width * 3 // 2, square.height), Image.Resampling.BICUBIC)
    short, long = "how many circles are there?", "how many circles are there, and what colour is the largest square?"
    mixed = Prompts("a ragged batch", [short, long, long], [[wide], [], [square, wide]])
    images = Prompts("a ragged batch of images", [short, long], [[wide], [square, wide]])
    one_each = Prompts("a ragged batch, one image each", [short, long], [[wide], [square]])
    return [
        [Prompts("one image", [short], [[square]])],
        [Prompts("two images", [long], [[square, wide]])],
        [mixed, images, one_each],
    ]
