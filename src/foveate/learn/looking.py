"""A method that remembers the visual tokens that it is shown, and cuts nothing: how training reads a frozen model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from foveate.pruners import Pruner, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Looking(Pruner):
    """Remembers the visual tokens that reach decoder layer `layer`, with the outputs of these vision blocks."""

    name: ClassVar[str] = "looking"
    paper: ClassVar[str] = "none"
    summary: ClassVar[str] = "remembers the visual tokens"

    layer: int = 0
    vision: tuple[int, ...] = ()
    seen: list[VisualTokens] = field(default_factory=list, compare=False, repr=False)

    def layers(self, depth: int) -> tuple[int, ...]:
        return (self.layer,)

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return self.vision

    def select(self, tokens: VisualTokens) -> Tensor:
        self.seen.append(tokens)
        return tokens.valid


def as_model(value: Any, model: Any) -> Any:
    """A processor's output on the model's device, and in its type where it is of a floating-point type."""
    if not isinstance(value, Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else None)
