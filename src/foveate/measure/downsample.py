"""The baseline that needs no method: a smaller image.

With a keep ratio ``k`` each side is made ``sqrt(k)`` as long, so that ``k`` of the pixels are left. A processor that
resizes every image to one size scales it up again: the same information as a pruned run may use, but no token saved.
A processor that takes images of any size makes fewer tokens of it, about ``k`` of them.
"""

import math

from PIL import Image


def downsample(image: Image.Image, keep: float) -> Image.Image:
    """Return the image with ``keep`` of its pixels.

    Parameters
    ----------
    image : PIL.Image.Image
        Any size.
    keep : float
        Share of the pixels, over 0 and at most 1.
    """
    side = math.sqrt(keep)
    size = max(1, round(image.width * side)), max(1, round(image.height * side))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
