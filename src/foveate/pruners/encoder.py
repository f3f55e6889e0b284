"""Methods that read the vision encoder: which of its blocks the language model's features come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from foveate.errors import BudgetError
from foveate.pruners.base import Selection, SingleStagePruner, VisualTokens, option
from foveate.tensors import to_device


def used_block(config: Any) -> int:
    """The block whose output the model uses, from its config; negative: counted from the end."""
    layer = getattr(config, "vision_feature_layer", None)
    if isinstance(layer, Sequence):
        layer = layer[-1]
    if layer is None:
        return -1
    return layer if layer < 0 else max(layer - 1, 0)  # of the list of hidden states the first is no block's output


@dataclass(frozen=True, kw_only=True)
class EncoderPruner(SingleStagePruner):
    """A method with one cut that reads one block of the vision encoder, by default the one that the model uses.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the encoder has no such block.
    """

    layer: int = option(0, "cut before this decoder layer, counted from 0; 0 is before the language model", at_least=0)
    block: int | None = option(
        None, "block of the vision encoder that is read, negative from the end; none: the one whose output is used"
    )

    keeps_exactly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block is not None and (isinstance(self.block, bool) or not isinstance(self.block, int)):
            raise BudgetError(f"{self.name}: block must be an integer, got {self.block!r}")

    def resolved(self, config: Any) -> Self:
        return self if self.block is not None else dataclasses.replace(self, block=used_block(config))

    def vision_attention(self, depth: int) -> tuple[int, ...]:
        return () if self.keeps_all else (self.at(depth),)

    def for_bench(self, model: nn.Module, vision: bool) -> EncoderPruner:
        if vision:
            return self
        kind = type(type(self).__name__, (_MadeUp, type(self)), {})
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def made_up_width(self, tokens: VisualTokens) -> int:
        """How wide the outputs of a block are that `for_bench` makes up."""
        return tokens.features.shape[-1]

    def at(self, depth: int) -> int:
        """The block, counted from 0, in an encoder of `depth` blocks."""
        block = -1 if self.block is None else self.block
        return block if block >= 0 else depth + block


class _MadeUp(EncoderPruner):
    """A method as it is timed where images come encoded: what it reads of the vision encoder is made up."""

    def vision_attention(self, depth: int) -> tuple[int, ...]:
        return ()

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return ()

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor | Selection:
        draw = torch.rand(tokens.valid.shape[1], generator=torch.Generator().manual_seed(0))
        attention = to_device(draw, tokens.valid.device).expand(tokens.valid.shape)
        both = (attention, attention)
        width, wide = self.made_up_width(tokens), tokens.features.shape[-1]
        vision = tokens.features if width == wide else tokens.features.new_ones(*tokens.valid.shape, width)
        made = dataclasses.replace(tokens, received=both, class_received=both, vision=(vision,))
        return super().choose(made, k)
