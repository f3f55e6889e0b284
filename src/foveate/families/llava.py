"""LLaVA-1.5: a fixed number of visual tokens an image; or, with Pixtral's vision encoder, Pixtral 12B."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.families.base import Family
from foveate.families.grids import Grid, Run
from foveate.families.pixtral import pixtral_grids


@dataclass(frozen=True)
class Llava(Family):
    """Differs from the default in what its grid covers: the processor cuts out the middle, or pads to a square.

    With Pixtral's vision encoder an image is as large as it is, and all of it is seen.
    """

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        if config.vision_config.model_type == "pixtral":
            return pixtral_grids(kwargs, runs, config.vision_config.patch_size)
        return super().image_grids(config, kwargs, runs)

    def place(self, image: tuple[Grid, ...], size: tuple[int, int], processor: Any) -> tuple[Grid, ...]:
        settings = processor.image_processor
        if "longest_edge" in (settings.size or ()):  # Pixtral's
            return image
        canvas = (max(size), max(size)) if getattr(settings, "do_pad", False) else size
        resized = _resized(canvas, settings.size) if settings.do_resize else canvas
        crop = settings.crop_size
        shown = (crop["width"], crop["height"]) if settings.do_center_crop else resized
        (x1, x2), (y1, y2) = map(_span, size, canvas, resized, shown)
        return tuple(dataclasses.replace(grid, region=(x1, y1, x2, y2)) for grid in image)


def _resized(canvas: tuple[int, int], size: Any) -> tuple[int, int]:
    """Width and height that the processor makes of these."""
    if "shortest_edge" not in size:
        return size["width"], size["height"]
    width, height = (int(size["shortest_edge"] * edge / min(canvas)) for edge in canvas)
    return width, height


def _span(size: int, canvas: int, resized: int, shown: int) -> tuple[float, float]:
    """Where what is shown begins and ends, in shares of the image, along one axis.

    All in pixels: an image of `size` is padded to `canvas`, that is `resized`, and of that the middle `shown`.
    """
    padding, cut = (canvas - size) // 2, (resized - shown) // 2
    return (cut * canvas / resized - padding) / size, ((cut + shown) * canvas / resized - padding) / size


LLAVA = Llava("llava", "LLaVA-1.5", "llava-hf/llava-1.5-7b-hf")


VIPLLAVA = Llava("vipllava", "VipLLaVA", "llava-hf/vip-llava-7b-hf")
