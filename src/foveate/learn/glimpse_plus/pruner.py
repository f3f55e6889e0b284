"""The pruner while fine-tuning: boxes where the sample has some, a pruner's own choice elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.learn.data import Box
from foveate.learn.errors import TrainingError
from foveate.learn.glimpse.targets import target_mask
from foveate.pruners.base import AttentionForm, PromptRows, Pruner, VisualTokens
from foveate.pruners.glimpseprune.modules import default_layer

Boxes = Sequence[Box]
Size = tuple[int, int]


@dataclass
class EvidenceBatch:
    """What the batch to come is about; the trainer writes it, the pruner reads it.

    Parameters
    ----------
    boxes
        Of each sample; none where it has none.
    sizes
        Width and height of each sample's image in pixels.
    """

    boxes: Sequence[Boxes] = ()
    sizes: Sequence[Size] = ()

    @property
    def complete(self) -> bool:
        """Whether every sample has boxes."""
        return all(self.boxes)


@dataclass(frozen=True, kw_only=True)
class GivenBoxes(Pruner):
    """Keep what lies under the boxes that a sample brings; where it brings none, what another pruner selects.

    The cut lies where that other pruner's lies, or without one before layer K = ⌈2L/3⌉, and as with GlimpsePrune the
    KV cache of all earlier layers is cut too.

    Parameters
    ----------
    batch
        Of the batch to come.
    otherwise
        Chooses for samples without boxes; it cuts once.
    layer
        Where to cut without it.
    place
        `(grids of an image, its size) -> grids` that know which part of the image they cover.
    """

    name: ClassVar[str] = "given boxes"
    paper: ClassVar[str] = "Zeng et al. 2025, arXiv 2508.01548, the reinforcement stage of GlimpsePrune+"
    summary: ClassVar[str] = "the tokens under a sample's boxes; knows the truth"
    uses_grids: ClassVar[bool] = True

    batch: EvidenceBatch = field(default_factory=EvidenceBatch, compare=False, repr=False)
    otherwise: Pruner | None = None
    layer: int | None = None
    place: Callable[[tuple[Grid, ...], Size], tuple[Grid, ...]] | None = field(default=None, compare=False, repr=False)
    compact_cache: bool = True

    @property
    def asked(self) -> Pruner | None:
        """The other pruner, if the batch to come has use for it."""
        return None if self.batch.complete else self.otherwise

    def layers(self, depth: int) -> tuple[int, ...]:
        if self.otherwise is not None:
            layers = self.otherwise.layers(depth)
            if len(layers) != 1:
                raise BudgetError(f"the pruner for samples without boxes must cut once, got cuts before {layers}")
            return layers
        layer = default_layer(depth) if self.layer is None else self.layer
        if not 0 < layer < depth:
            raise BudgetError(f"the layer must be one of 1 to {depth - 1}, got {layer}")
        return (layer,)

    def resolved(self, config: Any) -> Pruner:
        otherwise = None if self.otherwise is None else self.otherwise.resolved(config)
        return dataclasses.replace(self, otherwise=otherwise)

    def notes(self, depth: int) -> tuple[str, ...]:
        return () if self.asked is None else self.asked.notes(depth)

    def attention_rows(self, layer: int, rows: PromptRows) -> Tensor | None:
        return None if self.asked is None else self.asked.attention_rows(layer, rows)

    def attention_form(self) -> AttentionForm:
        return "softmax" if self.asked is None else self.asked.attention_form()

    def sums_rows(self, layer: int) -> bool:
        return self.asked is not None and self.asked.sums_rows(layer)

    def extra_tokens(self, model: nn.Module) -> Tensor | None:
        return None if self.asked is None else self.asked.extra_tokens(model)

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return () if self.asked is None else self.asked.vision_layers(depth)

    def select(self, tokens: VisualTokens) -> Tensor:
        if len(self.batch.boxes) != tokens.valid.shape[0]:
            raise TrainingError(
                f"boxes are known for {len(self.batch.boxes)} samples, the forward pass has {tokens.valid.shape[0]}"
            )
        if self.asked is not None:
            keep = self.asked.select(tokens).clone()
        elif self.batch.complete:
            keep = torch.zeros_like(tokens.valid)
        else:
            raise TrainingError("a sample has no boxes, and there is no pruner that could choose for it")
        for row, boxes in enumerate(self.batch.boxes):
            if boxes:
                keep[row] = self._under(boxes, tokens, row)
        return keep

    def _under(self, boxes: Boxes, tokens: VisualTokens, row: int) -> Tensor:
        """(N,) bool, the visual tokens of a sample that its boxes touch."""
        grids = tokens.grids[row] if self.place is None else self.place(tokens.grids[row], self.batch.sizes[row])
        mask = target_mask(boxes, grids)
        there = int(tokens.valid[row].sum())
        if mask.shape[0] != there:
            raise TrainingError(f"a sample's image has {mask.shape[0]} visual tokens, its prompt {there}")
        return nn.functional.pad(mask, (0, tokens.valid.shape[1] - there)).to(tokens.valid.device)
