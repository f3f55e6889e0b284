"""The vision encoder of a model: its parts, and how what its blocks put out lines up with the visual tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from foveate.errors import UnsupportedModelError

BLOCKS = ("blocks", "layers", "layer")
PROJECTORS = ("multi_modal_projector", "connector", "merger")


@dataclass(frozen=True)
class VisionParts:
    """The pieces of the vision side that the engine hooks where a method wants what the encoder's blocks put out.

    Attributes
    ----------
    encoder
        One call of it encodes images or videos.
    blocks
        Its transformer blocks, from the first.
    projector
        Module that makes visual tokens, as wide as the language model, of what the encoder puts out.
    """

    encoder: nn.Module
    blocks: nn.ModuleList
    projector: nn.Module


def find_vision_parts(model: Any, projectors: Sequence[str] = PROJECTORS) -> VisionParts:
    """The parts where most models have them, and the projector under one of these names.

    Raises
    ------
    UnsupportedModelError
        Naming each piece that is missing.
    """
    encoder = model.get_encoder(modality="image") if hasattr(model, "get_encoder") else None
    encoder = encoder if isinstance(encoder, nn.Module) and encoder is not model else None
    lists = [] if encoder is None else [(name, one) for name, one in encoder.named_modules() if _is_blocks(name, one)]
    blocks = min(lists, key=lambda pair: pair[0].count("."))[1] if lists else None
    owners = (getattr(model, "base_model", model), encoder)
    named = (getattr(owner, name, None) for owner in owners for name in projectors)
    projector = next((module for module in named if isinstance(module, nn.Module)), None)
    missing = [
        what
        for what, there in (
            ("a vision encoder (get_encoder(modality='image'))", encoder is not None),
            (f"a list of its blocks ({', '.join(BLOCKS)})", blocks is not None),
            (f"a projector after it ({', '.join(projectors)})", projector is not None),
        )
        if not there
    ]
    if missing:
        raise UnsupportedModelError(
            f"the vision encoder of {type(model).__name__} was not found: {'; '.join(missing)}"
        )
    return VisionParts(cast("nn.Module", encoder), cast("nn.ModuleList", blocks), cast("nn.Module", projector))


SIZES = "_foveate_sizes"


def keep_sizes(output: Any, sizes: Tensor | None) -> None:
    """Let the sizes of the images in a call of the encoder travel with what it put out.

    `generate()` of current transformers hands the base model that very object, but takes the sizes away.
    """
    if sizes is not None and hasattr(output, "__dict__"):
        setattr(output, SIZES, sizes)


def kept_sizes(output: Any) -> Tensor | None:
    """The sizes that `keep_sizes` put there, (images, ...); None if none did."""
    return getattr(output, SIZES, None)


def _is_blocks(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in BLOCKS


def average_squares(output: Tensor, tokens: int) -> Tensor:
    """Features of visual tokens that stand for squares of patches, each the mean of its patches.

    Parameters
    ----------
    output
        (tiles, patches, C) in raster order, perhaps with one class token in front.
    tokens
        Visual tokens of a tile, in raster order too.

    Returns
    -------
    Tensor
        (tiles * tokens, C).

    Raises
    ------
    UnsupportedModelError
        When so many patches do not make so many squares.
    """
    tiles, patches, _ = output.shape
    side = math.isqrt(patches // tokens) if tokens else 0
    front = patches - side * side * tokens
    edge = math.isqrt(tokens)
    if side == 0 or front not in (0, 1) or (side > 1 and edge * edge != tokens):
        raise UnsupportedModelError(
            f"{patches} features of the vision encoder do not line up with {tokens} visual tokens of an image"
        )
    output = output[:, front:]
    if side > 1:
        output = output.unflatten(1, (edge, side, edge, side)).mean((2, 4))
    return output.reshape(tiles * tokens, -1)


def same_features(projected: Tensor, given: Tensor, order: Tensor) -> bool:
    """Whether `given` (..., D) holds at each place the row of `projected` (M, D) that `order` (...) names, if any."""
    named = order >= 0
    ours, theirs = projected[order[named]], given[named]
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())
