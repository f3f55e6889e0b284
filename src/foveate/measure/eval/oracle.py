"""The oracle: keeps the tokens that the answer lies under. An upper bound, not a method: it is given the evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.errors import FoveateError
from foveate.measure.eval.suites import Example
from foveate.pruners import SingleStagePruner, VisualTokens


class NoEvidenceError(FoveateError, ValueError):
    """The oracle was asked for where nobody says which visual tokens an answer lies under."""


@dataclass(frozen=True, kw_only=True)
class Evidence(SingleStagePruner):
    """Keep the evidence first, then random tokens until the budget is spent.

    What it loses against the dense model is what any method loses at that budget and stage, even with perfect choice.

    Parameters
    ----------
    masks
        (B, N) bool. The evidence of each sample of the batch to come; one image a sample.
    seed
        Seed of the random rest.
    """

    name: ClassVar[str] = "evidence"
    paper: ClassVar[str] = "diagnostic"
    summary: ClassVar[str] = "the tokens under the answer, then random ones; knows the truth"

    masks: Tensor | None = field(default=None, compare=False, repr=False)
    seed: int = 0

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        if self.masks is None or self.masks.shape != tokens.valid.shape:
            given = None if self.masks is None else tuple(self.masks.shape)
            raise NoEvidenceError(f"evidence for {given} (samples, tokens), the batch has {tuple(tokens.valid.shape)}")
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.rand(self.masks.shape, generator=generator)
        return select.top_k((draw + self.masks).to(tokens.features.device), k, tokens.valid)


def evidence_masks(examples: list[Example], visual_tokens: int) -> Tensor:
    """Return the evidence of a batch, `(B, visual_tokens) bool`.

    Raises
    ------
    NoEvidenceError
        The suite names no evidence, or names it on another grid than the model's.
    """
    masks = torch.zeros(len(examples), visual_tokens, dtype=torch.bool)
    for row, example in zip(masks, examples, strict=True):
        if example.evidence is None or (example.evidence.numel() and int(example.evidence.max()) >= visual_tokens):
            raise NoEvidenceError("the oracle needs the embedded scenes and a model with their grid of visual tokens")
        row[example.evidence] = True
    return masks
