"""A predicted cost beside the dense run's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PrefillSeconds:
    """Seconds of a prefill.

    Parameters
    ----------
    vision
        Of the vision encoder, as it was given.
    before, behind
        Of the decoder layers before the first stage and after it.
    rest
        Of embedding the prompt, of the next token's logits, and of reading the prompt for what may be pruned.
    choosing, compaction
        Of showing the method its tokens and its choice; of removing tokens, from the KV cache too.
    """

    vision: float
    before: float
    behind: float
    rest: float
    choosing: float = 0.0
    compaction: float = 0.0

    @property
    def total(self) -> float:
        """Seconds to the first token."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Prediction:
    """A setting's predicted cost beside the dense run's.

    Parameters
    ----------
    visual, text, batch
        Visual and text tokens of each prompt, and prompts.
    stages
        (layer, visual tokens left) of each stage.
    tokens_per_layer
        Visual tokens that enter each decoder layer.
    dense, pruned
        Seconds of the prefill.
    flops_dense, flops_pruned
        Of the decoder layers for one prompt, as the report has them.
    kv_share
        Visual tokens in the KV cache as a share of the dense run's, as the report has it.
    kv_dense, kv_pruned
        Bytes of the KV cache after the prefill, text too.
    weights
        Bytes of the language model's weights.
    memory_dense, memory_pruned
        Bytes at the peak of the prefill above the weights: KV cache, and what is alive in a layer.
    skipped
        Why nothing would be pruned.
    """

    visual: int
    text: int
    batch: int
    stages: tuple[tuple[int, int], ...]
    tokens_per_layer: tuple[int, ...]
    dense: PrefillSeconds
    pruned: PrefillSeconds
    flops_dense: float
    flops_pruned: float
    kv_share: float
    kv_dense: float
    kv_pruned: float
    weights: float
    memory_dense: float
    memory_pruned: float
    skipped: str | None = None

    @property
    def speedup(self) -> float:
        """Dense time to the first token over the pruned run's."""
        return self.dense.total / self.pruned.total

    @property
    def implied(self) -> float:
        """Speed-up of the prefill by FLOPs alone."""
        return self.flops_dense / self.flops_pruned

    @property
    def memory_share(self) -> float:
        """Peak memory above the weights as a share of the dense run's."""
        return self.memory_pruned / self.memory_dense

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        ratios = {name: getattr(self, name) for name in ("speedup", "implied", "memory_share")}
        return {**dataclasses.asdict(self), **ratios}
