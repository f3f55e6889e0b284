"""The sizes of GlimpsePrune's learned parts for any model, by the proportions that were published."""

from __future__ import annotations

from typing import Any

from foveate.errors import IncompatibleWeightsError
from foveate.families import family_of
from foveate.pruners.glimpseprune.modules import (
    EPS,
    GlimpseConfig,
    attention_heads,
    default_layer,
    published_vision_layers,
)


def sizes_for(model: Any, **changes: Any) -> GlimpseConfig:
    """The published proportions for a model: K = ⌈2L/3⌉, four vision layers at even steps from the deepest up.

    Raises
    ------
    IncompatibleWeightsError
        The model has no such layer, or the sizes do not go together.
    """
    family, text = family_of(model), model.config.get_text_config()
    blocks = len(family.vision_blocks(model))
    layers = changes.get("vision_layers", published_vision_layers(blocks))
    if wrong := [layer for layer in layers if not 0 <= layer < blocks]:
        raise IncompatibleWeightsError(f"the vision encoder has {blocks} blocks, and no {', '.join(map(str, wrong))}")
    layer = changes.get("layer", default_layer(text.num_hidden_layers))
    found: dict[str, Any] = {
        "depth": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "heads": attention_heads(text, layer - 1),
        "layer": layer,
        "vision_layers": layers,
        "vision_size": family.vision_width(model.config) if layers else 0,
        "norm_eps": getattr(text, "rms_norm_eps", EPS),
    }
    return GlimpseConfig(**{**found, **changes})
