"""Grounded samples from JSON files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from foveate.learn.data.reading import find_image, image_size, read_samples
from foveate.learn.data.rows import Row, Size
from foveate.learn.data.sample import GroundedSamples, Source, fingerprint
from foveate.learn.errors import TrainingDataError


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
    if not path.is_file():
        raise TrainingDataError(f"no file {path}")
    folder = path.parent if images is None else Path(images)
    if not folder.is_dir():
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
    except ValueError as error:  # UnicodeDecodeError too
        raise TrainingDataError(f"{path} is neither JSON nor lines of JSON: {error}") from error
    return "line", ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
