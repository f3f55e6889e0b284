"""What training cannot do with models whose layers have a running state in place of attention."""

from __future__ import annotations

from typing import Any

from foveate.engine.flops import STATES
from foveate.errors import UnsupportedModelError


def refuse_states(model: Any) -> None:
    """Refuse a hybrid model where gradients are to flow through its cache.

    Raises
    ------
    UnsupportedModelError
        When a decoder layer has a running state: transformers writes it in place, and the gradient is lost.
    """
    config = model.config.get_text_config(decoder=True)
    if STATES & set(getattr(config, "layer_types", None) or ()):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be trained with its cache: its layers with linear attention or "
            "convolutions overwrite their state in place, so that no gradient flows through it"
        )
