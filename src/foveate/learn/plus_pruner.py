"""The pruner while fine-tuning: boxes where the sample has some, a pruner's own choice elsewhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.errors import BudgetError
from foveate.learn.errors import TrainingError
from foveate.learn.grounded import Box
from foveate.learn.targets import target_mask
from foveate.pruners.base import PromptRows, Pruner, VisualTokens

Boxes = Sequence[Box]


@dataclass
class Batch:
    """What the batch to come is about; the trainer writes it, the pruner reads it."""

    boxes: Sequence[Boxes | None] = ()

    def repeated(self, rows: int) -> Sequence[Boxes | None]:
        """The boxes of each row of a forward pass.

        Raises
        ------
        TrainingError
            The pass has other rows than the batch.
        """
        if len(self.boxes) != rows:
            raise TrainingError(f"boxes are known for {len(self.boxes)} samples, the forward pass has {rows}")
        return self.boxes


@dataclass(frozen=True, kw_only=True)
class GivenBoxes(Pruner):
    """Keep what lies under the boxes that a sample brings; where it brings none, what another pruner chooses.

    The cut lies where that other pruner's lies, or without one before layer ⌈2L/3⌉, and as with GlimpsePrune the KV
    cache of all earlier layers is cut too.

    Parameters
    ----------
    batch : Batch
        Boxes of the batch to come.
    otherwise : Pruner or None
        Chooses for samples without boxes; it cuts once.
    layer : int or None
        Where to cut without it.
    """

    name: ClassVar[str] = "given boxes"
    paper: ClassVar[str] = "Zeng et al., arXiv 2508.01548, the reinforcement stage of GlimpsePrune+"
    summary: ClassVar[str] = "the tokens under a sample's boxes; knows the truth"

    batch: Batch = field(default_factory=Batch, compare=False, repr=False)
    otherwise: Pruner | None = None
    layer: int | None = None
    compact_cache: bool = True

    def layers(self, depth: int) -> tuple[int, ...]:
        if self.otherwise is not None:
            layers = self.otherwise.layers(depth)
            if len(layers) != 1:
                raise BudgetError(f"the pruner for samples without boxes must cut once, got cuts before {layers}")
            return layers
        layer = math.ceil(2 * depth / 3) if self.layer is None else self.layer
        if not 0 <= layer < depth:
            raise BudgetError(f"layer {layer} is not in a model of {depth} decoder layers")
        return (layer,)

    def resolved(self, depth: int) -> Pruner:
        if self.otherwise is None:
            return self
        return dataclasses.replace(self, otherwise=self.otherwise.resolved(depth))

    def notes(self, depth: int) -> tuple[str, ...]:
        return () if self.otherwise is None else self.otherwise.notes(depth)

    def attention_rows(self, layer: int, rows: PromptRows) -> Tensor | None:
        return None if self.otherwise is None else self.otherwise.attention_rows(layer, rows)

    def attention_form(self) -> Literal["softmax", "logits"]:
        return "softmax" if self.otherwise is None else self.otherwise.attention_form()

    def extra_tokens(self, model: nn.Module) -> Tensor | None:
        return None if self.otherwise is None else self.otherwise.extra_tokens(model)

    def select(self, tokens: VisualTokens) -> Tensor:
        known = self.batch.repeated(tokens.valid.shape[0])
        alone = [row for row, boxes in enumerate(known) if not boxes and bool(tokens.valid[row].any())]
        if alone and self.otherwise is None:
            raise TrainingError(
                "a sample has no boxes, and there is no pruner to choose in their place: give `predictor`"
            )
        keep = torch.zeros_like(tokens.valid) if self.otherwise is None else self.otherwise.select(tokens).clone()
        for row, boxes in enumerate(known):
            if boxes:
                keep[row] = self._under(boxes, tokens, row)
        return keep

    def _under(self, boxes: Boxes, tokens: VisualTokens, row: int) -> Tensor:
        """(N,) bool, the visual tokens of a sample that its boxes touch."""
        mask = target_mask(boxes, tokens.grids[row])
        there = int(tokens.valid[row].sum())
        if mask.shape[0] != there:
            raise TrainingError(f"a sample's grids hold {mask.shape[0]} visual tokens, its prompt {there}")
        return nn.functional.pad(mask, (0, tokens.valid.shape[1] - there)).to(tokens.valid.device)
