"""Grounded samples from JSON files and from folders of the datasets library."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.learn.data.rows import Row, Size, read_row
from foveate.learn.data.sample import GroundedSample, GroundedSamples, Source, fingerprint
from foveate.learn.errors import TrainingDataError
from foveate.measure.images import as_rgb

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
        if os.path.isfile(place / name):
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
    except (ValueError, RecursionError) as error:
        raise TrainingDataError(f"this is no JSON: {error}") from error
    if not isinstance(fields, Mapping):
        raise TrainingDataError(f"a sample is a JSON object, not {type(fields).__name__}")
    return fields


def from_jsonl(path: str | Path, images: str | Path | None = None, skip_bad: bool = False) -> GroundedSamples:
    """Samples of a file with one JSON object a line, or with one JSON list of objects.

    An object has `image` (a path), `question`, `answer` and `boxes`: lists of x1, y1, x2, y2 as shares of the
    image or, beside `width` and `height`, in pixels; `task` is optional. Visual-CoT's files are read as they
    are: `bboxs` in pixels, `full_answer` where there is no `answer`, `dataset`, or the form with
    `conversations`. That images exist is seen to at once; none is opened unless its size is needed.

    Parameters
    ----------
    path
        The file.
    images
        What image paths start from, if not from the file's folder. An image is also looked for in a folder with the
        name of the row's `dataset`, and in `cot` above that, as Visual-CoT lays its images out.
    skip_bad
        Leave out what cannot be used, and say so in `skipped`: some of Visual-CoT's boxes lie outside of their images.

    Raises
    ------
    TrainingDataError
        There is no such file, no sample in it, or a line that cannot be used; the message names it.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise TrainingDataError(f"no file {path}")
    folder = path.parent if images is None else Path(images)
    if not os.path.isdir(folder):
        raise TrainingDataError(f"no folder {folder} for the images of {path}")
    digest = hashlib.sha256()

    def find(row: Row, number: int) -> tuple[Source, Callable[[], Size]]:
        found = find_image(folder, row.image, row.task)
        digest.update(f"{row.image} {found.stat().st_size}\n".encode())
        return found, lambda: image_size(found)

    what, rows = _rows(path)
    items, skipped = read_samples(rows, find, path, what, skip_bad)
    return GroundedSamples(items, str(path), fingerprint(digest, items), skipped)


def _rows(path: Path) -> tuple[str, Iterator[tuple[int, Any]]]:
    """What the rows of a file are called, and they, numbered: its lines, or the items of its list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            return "item", enumerate(json.loads(text))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        raise TrainingDataError(f"{path} is neither JSON nor lines of JSON: {error}") from error
    return "line", ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def from_datasets(folder: str | Path, split: str | None = None, skip_bad: bool = False) -> GroundedSamples:
    """Samples of a folder that the datasets library wrote with `save_to_disk`; columns as the fields of `from_jsonl`.

    The column `image` holds images, or paths that start from the folder.

    Parameters
    ----------
    folder
        The folder.
    split
        Which part of it, where it has several.
    skip_bad
        Leave out what cannot be used, and say so in `skipped`.

    Raises
    ------
    TrainingDataError
        The library is not installed, there is no such folder or split, no sample, or one that cannot be used.
    """
    folder = Path(folder)
    table, bare = _tables(folder, split)

    def find(row: Row, number: int) -> tuple[Source, Callable[[], Size]]:
        if not isinstance(row.image, Mapping):
            found = find_image(folder, row.image, row.task)
            return found, lambda: image_size(found)
        held = row.image["bytes"]
        if held is None:
            find_image(folder, row.image["path"], "")
        return Cell(table, number, str(folder)), lambda: image_size(
            row.image["path"] if held is None else io.BytesIO(held)
        )

    items, skipped = read_samples(enumerate(bare), find, folder, "row", skip_bad)
    digest = hashlib.sha256(str(table._fingerprint).encode())
    return GroundedSamples(items, str(folder), fingerprint(digest, items), skipped)


@dataclass(frozen=True, eq=False)
class Cell:
    """An image in a table of the datasets library, decoded when it is asked for."""

    table: Any
    number: int
    name: str

    def __call__(self) -> Image.Image:
        """The image in RGB, turned as its camera meant."""
        try:
            return as_rgb(self.table[self.number]["image"])
        except UNREADABLE as error:
            raise TrainingDataError(f"cannot read the image of {self.name}, row {self.number}: {error}") from error


def _tables(folder: Path, split: str | None) -> tuple[Any, Any]:
    """A part of a saved data set, and the same with its images left encoded."""
    if not os.path.isdir(folder):
        raise TrainingDataError(f"no folder {folder}")
    try:
        import datasets
    except ImportError as error:
        raise TrainingDataError(f"{folder} needs the datasets library: pip install 'foveate[train]'") from error
    try:
        table = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, IndexError) as error:  # IndexError: a table without rows
        raise TrainingDataError(f"{folder} holds no samples written by save_to_disk: {error}") from error
    if isinstance(table, datasets.DatasetDict):
        if split is None and len(table) == 1:
            split = next(iter(table))
        if split not in table:
            raise TrainingDataError(f"{folder} has the splits {', '.join(table)}; which one?")
        table = table[split]
    elif split is not None and str(table.split) != split:
        raise TrainingDataError(f"{folder} has no splits to choose '{split}' from")
    embedded = isinstance(table.features.get("image"), datasets.Image)
    return table, table.cast_column("image", datasets.Image(decode=False)) if embedded else table
