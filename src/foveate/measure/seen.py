"""An image as the model saw it, so that a picture of its tokens lies true."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image


def seen_image(processor: Any, inputs: Mapping[str, Any], index: int, original: Image.Image) -> Image.Image:
    """Return one image after the processor's resizing and cropping.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
        What made ``inputs``.
    inputs : mapping
        A processed batch.
    index : int
        Place of the image among all images of the batch.
    original : PIL.Image.Image
        What was given. It is returned where the processor only resizes, since its patches then cover all of it.
    """
    pixels, settings = inputs.get("pixel_values"), processor.image_processor
    if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4 or not getattr(settings, "do_center_crop", False):
        return original
    mean, std = (torch.tensor(getattr(settings, name)).view(3, 1, 1) for name in ("image_mean", "image_std"))
    shown = (pixels[index].detach().float().cpu() * std + mean).clamp(0, 1) * 255
    return Image.fromarray(shown.round().permute(1, 2, 0).numpy().astype(np.uint8))
