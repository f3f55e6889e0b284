"""A pruner that looks at what the vision encoder's blocks put out, and what else the tests of that share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import transformers

from foveate.engine import attach
from foveate.pruners import Pruner, VisualTokens
from tests.models import TINY
from tests.models.build import AVERAGED, WITH_VIDEOS, generate
from tests.models.llava_and_gemma import MORE

# From then on `generate()` encodes the images first. Before, it repeats them for beams one by one, not by sample:
# where a sample has several images or tiles, the model gets them mixed up.
ENCODES_FIRST = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 19)
MIXED_UP = () if ENCODES_FIRST else ("llava", "llava_next", "internvl", *MORE, *TINY)
# GLM's still does: it has no way of its own to repeat images of several sizes
MIXED_UP += ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")
# Llama 4's does not repeat them, and raises
MIXED_UP += ("llama4",)
INTERNVL3_5 = ("internvl3_5", "internvl3_5_moe", "internvl3_5_gpt_oss")
TILED = (
    "internvl",
    *INTERNVL3_5,
    "got_ocr2",
    "ovis2",
)  # where one image has several tiles, which are mixed up as images are
VIDEOS_LINE_UP = tuple(family for family in WITH_VIDEOS if (family, "video") not in AVERAGED)


@dataclass(frozen=True, kw_only=True)
class Look(Pruner):
    """Keeps every third token before layer 1, all of them before layer 3, and all that it was shown."""

    name: ClassVar[str] = "look"
    paper: ClassVar[str] = "test"
    summary: ClassVar[str] = "test"
    blocks: tuple[int, ...] = (2, 0)
    attended: tuple[int, ...] = ()
    cuts: tuple[int, ...] = (1, 3)
    seen: list[VisualTokens] = field(default_factory=list, compare=False)

    def layers(self, depth):
        return self.cuts

    def vision_layers(self, depth):
        return self.blocks

    def vision_attention(self, depth):
        return self.attended

    def select(self, tokens):
        self.seen.append(tokens)
        third = torch.arange(tokens.valid.shape[1]) % 3 == 1
        return tokens.valid & (third if tokens.layer == 1 else torch.tensor(True))


def run(model, batch, how):
    """`model` on `batch`, one way or another."""
    if how == "forward":
        with torch.no_grad():
            model(**batch)
    elif how == "beams":
        generate(model, batch, 2, num_beams=2)
    else:
        generate(model, batch, 2)


def looked(model, batch, how="generate", **options) -> list[VisualTokens]:
    """What a method is shown, at each of its stages."""
    look = Look(**options)
    with attach(model, look):
        run(model, batch, how)
    return look.seen


@contextmanager
def hooked(*handles) -> Iterator[None]:
    """Hooks that a test needs, taken off again."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
