"""How a predictor does on questions whose evidence is known: recall first, then how much it keeps, then accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from foveate.families import family_of
from foveate.learn.data import GroundedSample
from foveate.learn.glimpse.targets import shown_targets
from foveate.measure.eval.answers import run_batch
from foveate.measure.eval.suites import is_correct
from foveate.measure.loading import LoadedModel
from foveate.pruners import GlimpsePrune, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Recording(GlimpsePrune):
    """GlimpsePrune that remembers what it kept."""

    seen: list[tuple[VisualTokens, Tensor]] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def of(cls, pruner: GlimpsePrune) -> Recording:
        """The same pruner, remembering."""
        return cls(**{item.name: getattr(pruner, item.name) for item in dataclasses.fields(GlimpsePrune)})

    def select(self, tokens: VisualTokens) -> Tensor:
        keep = super().select(tokens)
        self.seen.append((tokens, keep))
        return keep


@dataclass(frozen=True)
class Check:
    """Means over the questions; shares from 0 to 1.

    Attributes
    ----------
    recall
        Of the evidence tokens, those kept, over the questions that have some; None where none has, or nothing was cut.
    precision
        Of the kept tokens, those under the evidence, over the same questions.
    kept
        Of the visual tokens, those kept.
    accuracy
        Answers that are right, exactly.
    questions
        How many.
    """

    recall: float | None
    precision: float | None
    kept: float
    accuracy: float
    questions: int


def check(
    loaded: LoadedModel,
    samples: Sequence[GroundedSample],
    pruner: GlimpsePrune | None,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    progress: Callable[[str, int, int], None] | None = None,
) -> Check:
    """Answer the questions pruned, or dense with None, and compare what was kept with the boxes."""
    recalls: list[float] = []
    precisions: list[float] = []
    kept: list[float] = []
    right = 0
    for at in range(0, len(samples), batch_size):
        batch = samples[at : at + batch_size]
        recording = None if pruner is None else Recording.of(pruner)
        questions, images = [sample.question for sample in batch], [[sample.image()] for sample in batch]
        answers = run_batch(loaded, questions, images, recording, max_new_tokens).texts
        right += sum(is_correct(text, sample.answer) for text, sample in zip(answers, batch, strict=True))
        if recording is not None and recording.seen:
            tokens, keep = recording.seen[0]
            kept += (keep.sum(-1) / tokens.valid.sum(-1).clamp(min=1)).tolist()
            boxes, sizes = [sample.boxes for sample in batch], [own[0].size for own in images]
            target = shown_targets(boxes, sizes, tokens, family_of(loaded.model), loaded.processor)
            there, both = target.any(-1), (target & keep).sum(-1)
            recalls += (both / target.sum(-1).clamp(min=1))[there].tolist()
            precisions += (both / keep.sum(-1).clamp(min=1))[there].tolist()
        if progress:
            progress("checking", min(at + batch_size, len(samples)), len(samples))
    share = sum(kept) / len(kept) if kept else 1.0  # nothing was cut
    return Check(_mean(recalls), _mean(precisions), share, right / len(samples), len(samples))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def told(found: Check) -> dict[str, Any]:
    """Plain data for JSON, rounded."""
    return {name: value if value is None else round(value, 4) for name, value in dataclasses.asdict(found).items()}
