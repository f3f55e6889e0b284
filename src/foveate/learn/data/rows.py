"""One row of a data set: its boxes, our own field names, and those of Visual-CoT in both of its forms."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    except (TypeError, ValueError, RecursionError):  # json's error is a ValueError
        pass
    raise TrainingDataError(f"a box is four numbers x1, y1, x2, y2, not {reprlib.repr(value)}")


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


Size = tuple[float, float]
# what Visual-CoT's conversations add to a question, to be answered with a box
ASKS_FOR_BOX = re.compile(r"\s*Please (think step by step and )?provide the bounding box coordinate\b.*", re.DOTALL)
BOX_BEHIND_PATH = "###"


@dataclass(frozen=True)
class Row:
    """What a row says, before its image is looked for.

    Attributes
    ----------
    question, answer, task
        Of the sample.
    image
        A path, or what a data set's image column holds.
    raw
        Boxes as they stand there.
    unit
        What their numbers are: "shares" of the image, "pixels", or shares of the "square" that it was padded to.
    size
        Width and height of the image in pixels, if the row says so.
    """

    question: str
    answer: str
    task: str
    image: Any
    raw: tuple[Any, ...]
    unit: str
    size: Size | None

    def boxes(self, image_size: Callable[[], Size]) -> tuple[Box, ...]:
        """The boxes as shares of the image; its size is asked for only where it is needed and the row has none.

        Raises
        ------
        TrainingDataError
            A box is not one, is empty, or lies outside of the image.
        """
        found = [four_numbers(box) for box in self.raw]
        if found and self.unit != "shares":
            size = self.size or image_size()
            found = [(shares if self.unit == "pixels" else out_of_square)(box, *size) for box in found]
        return tuple(checked(box, said) for box, said in zip(found, self.raw, strict=True))


def read_row(fields: Mapping[str, Any]) -> Row:
    """What the fields of a row say.

    Raises
    ------
    TrainingDataError
        A field is missing, or does not hold what it should.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    task = str(fields.get("task", fields.get("dataset", "")))
    if "image" not in fields:
        raise TrainingDataError("the field 'image' is missing")
    image, marked = _image(fields["image"])
    if "conversations" in fields:
        question, answer, said = _conversation(fields["conversations"])
        raw, unit = (marked, "pixels") if marked else (said, "square")
    else:
        question, answer = _text(fields, "question"), _text(fields, "answer", "full_answer")
        raw, unit = _boxes(fields)
    return Row(question, answer, task, image, raw, unit, _size(fields))


def _text(fields: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that is there, as text."""
    for name in names:
        if name in fields:
            value = fields[name]
            text = str(value).strip() if isinstance(value, (str, int, float)) else ""
            if not text:
                raise TrainingDataError(f"the field '{name}' holds no text, but {value!r}")
            return text
    raise TrainingDataError(f"the field '{names[0]}' is missing")


def _boxes(fields: Mapping[str, Any]) -> tuple[tuple[Any, ...], str]:
    for name in ("boxes", "bboxs", "bbox"):
        if name in fields:
            value = fields[name]
            raw = (value,) if name == "bbox" else value
            if not isinstance(raw, (list, tuple)):
                raise TrainingDataError(f"the field '{name}' is no list of boxes, but {value!r}")
            pixels = name == "bboxs" or "width" in fields or "height" in fields
            return tuple(raw), "pixels" if pixels else "shares"
    raise TrainingDataError("the field 'boxes' is missing; [] says that the answer lies nowhere in particular")


def _size(fields: Mapping[str, Any]) -> Size | None:
    if "width" not in fields and "height" not in fields:
        return None
    width, height = fields.get("width"), fields.get("height")
    if isinstance(width, (int, float)) and isinstance(height, (int, float)) and width > 0 and height > 0:
        return width, height
    raise TrainingDataError(f"'width' and 'height' must both be positive numbers, not {width!r} and {height!r}")


def _image(value: Any) -> tuple[Any, tuple[str, ...]]:
    """The image, and the boxes in pixels after further mentions of it: ["a.jpg", "a.jpg###[1, 2, 3, 4]"]."""
    if not isinstance(value, (list, tuple)):
        return value, ()
    if not value or not all(isinstance(one, str) for one in value):
        raise TrainingDataError(f"the field 'image' names no image, but holds {value!r}")
    marked = (one.partition(BOX_BEHIND_PATH)[2] for one in value)
    return value[0].partition(BOX_BEHIND_PATH)[0], tuple(box for box in marked if box)


def _conversation(turns: Any) -> tuple[str, str, tuple[str, ...]]:
    """Question, answer, and boxes: the first question that is no request for a box alone, and what was said to it."""
    try:
        asked = [turn["value"] for turn in turns if turn["from"] == "human"]
        said = [turn["value"].strip() for turn in turns if turn["from"] == "gpt"]
        question = ASKS_FOR_BOX.sub("", asked[0].replace("<image>", "")).strip()
        boxes = (said.pop(0),) if ASKS_FOR_BOX.search(asked[0]) else ()
        answer = said[0]
    except (TypeError, KeyError, IndexError, AttributeError):
        raise TrainingDataError("the field 'conversations' has no question with an answer") from None
    if not question or not answer:
        raise TrainingDataError("the field 'conversations' has an empty question or answer")
    return question, answer, boxes
