"""All that decides what comes out of a training run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadingRecipe:
    """The defaults are those of the run under way."""

    seed: int = 0
    scenes: int = 24000
    held_out_scenes: int = 800
    # the model
    hidden: int = 192
    mlp: int = 512
    heads: int = 6
    groups: int = 2
    """Heads of keys and values."""
    layers: int = 12
    vision_hidden: int = 160
    vision_layers: int = 4
    vision_heads: int = 5
    # stage A: the vision part, on what each patch shows
    steps_vision: int = 2400
    batch_vision: int = 24
    muon_vision: float = 0.02
    adam_vision: float = 0.003
    decay_vision: float = 0.5
    texture_gain: float = 6.0
