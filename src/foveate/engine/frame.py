"""The state of one forward pass, and what a prefill leaves behind for the report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.families import LayerAdditions


@dataclass
class StageRecord:
    """One cut as it happened; tensors stay where they are until the report is read."""

    layer: int
    position: Tensor
    image: Tensor
    keep: Tensor
    kept: list[int]
    elapsed: Callable[[], float]


@dataclass
class PrefillRecord:
    """One prefill: its sizes on the host, its cuts, or why there was none."""

    text: list[int]
    visual: list[int]
    image: Tensor | None
    stages: list[StageRecord] = field(default_factory=list)
    compacted: int = 0
    skipped: str | None = None


@dataclass
class Frame:
    """What the hooks of one forward pass share; one a thread.

    Attributes
    ----------
    length
        L, tokens given to this forward.
    visual, image, prompt
        (B, L): visual tokens; their image's number or -1; real tokens (None: all). `visual` is None where nothing
        can be pruned: a decode step, a prompt without images.
    query
        (B,) place of the last prompt token.
    counts
        Visual tokens still there, for each row, on the host.
    index
        (B, n) places among the L that are still there; None while all are. From L on: tokens of the method.
    alive
        (B, n) bool, False for padding; None where there is none.
    """

    length: int
    past: int = 0
    visual: Tensor | None = None
    image: Tensor | None = None
    prompt: Tensor | None = None
    query: Tensor | None = None
    counts: list[int] = field(default_factory=list)
    index: Tensor | None = None
    alive: Tensor | None = None
    extra: int = 0
    additions: LayerAdditions | None = None
    attention: Tensor | None = None
    record: PrefillRecord | None = None
    tap: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    memo: dict[Hashable, tuple[Any, Any]] = field(default_factory=dict)

    def once(self, key: Hashable, source: Any, make: Callable[[], Any]) -> Any:
        """`make()` once for each key and source object; the source is held, so that its id stays its own."""
        full = (key, id(source))
        if full not in self.memo:
            self.memo[full] = (source, make())
        return self.memo[full][1]

    def places(self, batch: int, device: torch.device) -> Tensor:
        """`index`, or every place, as (B, n)."""
        if self.index is not None:
            return self.index
        return torch.arange(self.length, device=device).expand(batch, -1)

    def cut(self, index: Tensor, alive: Tensor | None) -> None:
        """From here on only these places are there; what was picked for the old ones is stale."""
        self.index, self.alive = index, alive
        self.memo.clear()
