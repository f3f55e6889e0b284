"""Images encoded before the prompt is read, as `generate()` of current transformers does."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from foveate.errors import UnsupportedModelError

PIXELS = ("pixel_values", "pixel_attention_mask")


@torch.inference_mode()
def encode(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs with encoded images in the place of pixels.

    Raises
    ------
    UnsupportedModelError
        The model does not take encoded images.
    """
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModelError(f"{type(model).__name__} takes no encoded images: leave out --no-vision")
    takes = inspect.signature(model.get_image_features).parameters
    given = {name: value for name, value in inputs.items() if name in takes}
    found = model.get_image_features(**given)
    return {
        **{name: value for name, value in inputs.items() if name not in PIXELS},
        "mm_encoder_outputs": {"image": found},
    }
