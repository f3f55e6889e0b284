"""Boxes as data sets write them, as shares of the image."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from foveate.learn.data.sample import Box
from foveate.learn.errors import TrainingDataError

ROUNDING = 0.01  # shares by which a box may stick out of the image; it is cut at the edge


def shares(box: Sequence[float], width: float, height: float) -> Box:
    """A box in pixels as shares of an image of this size."""
    x1, y1, x2, y2 = box
    return x1 / width, y1 / height, x2 / width, y2 / height


def out_of_square(box: Sequence[float], width: float, height: float) -> Box:
    """A box in shares of the square that an image of this size was padded to, its middle kept, in shares of the image.

    So are the boxes in Visual-CoT's conversations.
    """
    side, left, top = max(width, height), max(height - width, 0) // 2, max(width - height, 0) // 2
    x1, y1, x2, y2 = (side * value for value in box)
    return shares((x1 - left, y1 - top, x2 - left, y2 - top), width, height)


def four_numbers(value: Any) -> Box:
    """A box given as a list, or as text that reads like one.

    Raises
    ------
    TrainingDataError
        It is neither.
    """
    try:
        numbers = json.loads(value) if isinstance(value, str) else value
        x1, y1, x2, y2 = numbers
        if not any(isinstance(number, (bool, str)) for number in numbers):
            return float(x1), float(y1), float(x2), float(y2)
    except (TypeError, ValueError):  # json's error is a ValueError
        pass
    raise TrainingDataError(f"a box is four numbers x1, y1, x2, y2, not {value!r}")


def checked(box: Box, said: Any) -> Box:
    """The box, cut at the image's edge where it sticks out by no more than rounding explains.

    Parameters
    ----------
    box
        In shares of the image.
    said
        As the data says it, for the message.

    Raises
    ------
    TrainingDataError
        It is not finite, is empty, or reaches beyond the image.
    """
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        raise TrainingDataError(f"the box {said} is not finite")
    if x2 <= x1 or y2 <= y1:
        raise TrainingDataError(f"the box {said} is empty: x2 must be larger than x1, and y2 larger than y1")
    if min(box) < -ROUNDING or max(box) > 1 + ROUNDING or min(x2, y2) <= 0 or max(x1, y1) >= 1:
        places = ", ".join(f"{value:.3g}" for value in box)
        raise TrainingDataError(f"the box {said} reaches beyond the image: ({places}) of its width and height")
    return max(x1, 0.0), max(y1, 0.0), min(x2, 1.0), min(y2, 1.0)
