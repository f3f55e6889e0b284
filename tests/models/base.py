"""What a tiny model of a family is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Generator, Tensor

from tests.models.images import Picture
from tests.models.sizes import LAYERS


@dataclass(frozen=True)
class TinyFamily:
    """A tiny model of a real class, with its images.

    Attributes
    ----------
    model, config
        Names of the classes in transformers.
    settings
        Makes the arguments of the config.
    picture
        The image `number` of a batch; the next one has another shape where the family has shapes. The last argument
        says whether its sample has others.
    inputs
        What the model takes beside ids and mask, from the images and videos of each sample.
    film
        A video; None for a family that takes none.
    types
        What the model wants to know of each token, from ids (B, L) and where videos are (B, L); None: nothing.
    needs
        Whether this transformers can make the model, beyond having its classes.
    variant
        Another tiny model of a family that has one under its own name.
    relative
        Its hooks meet the same code as those of a relative: fewer laws are run.
    unseen
        Its vision encoder's features cannot be lined up with the visual tokens, and `generate()` reports no layout.
    states
        Some of its layers have a running state in the place of attention.
    eager_only
        Its attention cannot be had as sdpa.
    decoder_only
        Its decoder alone takes other attention backends than eager.
    placed
        Though it is unseen, `generate()` reports its layout.
    streams
        Its layers hand on several states for each token, which added tokens do not have.
    last_stage
        Before which layer the last stage can lie: layers behind it read the keys and values of those before.
    merged
        Patches along the side of a visual token.
    packed
        Its vision encoder puts out all images in one row, each in raster order.
    codes
        What its vision encoder takes for patches, call by call, where images differ in it: from the images, or videos,
        and a function `code` that makes (rows * columns, 3) of one of them, rows and columns.
    between
        Hooks that let what its vision encoder has between its blocks average patches, so that codes pass.
    average
        Hooks that make the visual tokens, in their first channels, the mean of what the last block put out for them;
        None where hooks on the projector do.
    averaged
        Layouts whose vision features cannot be lined up with the visual tokens.
    """

    model: str
    config: str
    settings: Callable[[], dict]
    picture: Callable[[int, Generator, bool], Picture]
    inputs: Callable[[Sequence[Sequence[Picture]]], dict[str, Tensor]]
    film: Callable[[Generator], Picture] | None = None
    types: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
    needs: Callable[[], bool] = lambda: True
    variant: bool = False
    relative: bool = False
    unseen: bool = False
    states: bool = False
    eager_only: bool = False
    decoder_only: bool = False
    placed: bool = False
    streams: bool = False
    last_stage: int = LAYERS - 1
    merged: int = 2
    packed: bool = False
    codes: Callable[..., list[Tensor]] | None = None
    between: Callable[[Any], list[Any]] = lambda model: []
    average: Callable[[Any], list[Any]] | None = None
    averaged: tuple[str, ...] = ()

    def available(self) -> bool:
        """Whether the installed transformers can make it."""
        return hasattr(transformers, self.model) and hasattr(transformers, self.config) and self.needs()

    def make(self) -> tuple[type[transformers.PreTrainedModel], object]:
        """Class and config of the tiny model."""
        return getattr(transformers, self.model), getattr(transformers, self.config)(**self.settings())
