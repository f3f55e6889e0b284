"""What all readers share: rows to samples, and images that must be there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.learn.data.rows import Row, Size, read_row
from foveate.learn.data.sample import GroundedSample, Source
from foveate.learn.errors import TrainingDataError

# Visual-CoT keeps the images of one of its parts with those of another
IMAGES_ELSEWHERE = {"textcap": "textvqa"}
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# for a row and its number: the source of its image, and what finds out the size of that
Find = Callable[[Row, int], tuple[Source, Callable[[], Size]]]


def read_samples(
    rows: Iterable[tuple[int, Any]], find: Find, path: Path, what: str, skip_bad: bool
) -> tuple[tuple[GroundedSample, ...], tuple[str, ...]]:
    """The samples of numbered rows, each an object or the text of one, and why others were left out."""
    items, skipped = [], []
    for number, given in rows:
        try:
            row = read_row(_fields(given))
            source, size = find(row, number)
            items.append(GroundedSample(row.question, row.answer, source, row.boxes(size), row.task))
        except TrainingDataError as error:
            told = TrainingDataError(f"{path}, {what} {number}: {error}")
            if not skip_bad:
                raise told from error
            skipped.append(str(told))
    if not items:
        raise TrainingDataError(f"{path} has no sample" + (f" that can be used: {skipped[0]}" if skipped else ""))
    return tuple(items), tuple(skipped)


def find_image(folder: Path, name: Any, part: str) -> Path:
    """The file of an image, in a folder or in the one of its part of Visual-CoT."""
    if not isinstance(name, str) or not name:
        raise TrainingDataError(f"the field 'image' is no path, but {name!r}")
    part = IMAGES_ELSEWHERE.get(part, part)
    for place in (folder, folder / part, folder / "cot" / part):
        if (place / name).is_file():
            return place / name
    raise TrainingDataError(f"there is no image {folder / name}")


def image_size(file: Any) -> Size:
    """Width and height of an image as it is shown, from its header."""
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(0x0112) in TURNED
            return (image.height, image.width) if turned else image.size
    except UNREADABLE as error:
        raise TrainingDataError(f"cannot read the image's size: {error}") from error


def _fields(given: Any) -> Mapping[str, Any]:
    try:
        fields = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise TrainingDataError(f"this is no JSON: {error}") from error
    if not isinstance(fields, Mapping):
        raise TrainingDataError(f"a sample is a JSON object, not {type(fields).__name__}")
    return fields
