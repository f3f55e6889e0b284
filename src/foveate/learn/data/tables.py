"""Grounded samples from folders of the datasets library."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from foveate.learn.data.reading import UNREADABLE, find_image, image_size, read_samples
from foveate.learn.data.rows import Row, Size
from foveate.learn.data.sample import GroundedSamples, Source, fingerprint
from foveate.learn.errors import TrainingDataError


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
            return ImageOps.exif_transpose(self.table[self.number]["image"]).convert("RGB")
        except UNREADABLE as error:
            raise TrainingDataError(f"cannot read the image of {self.name}, row {self.number}: {error}") from error


def _tables(folder: Path, split: str | None) -> tuple[Any, Any]:
    """A part of a saved data set, and the same with its images left encoded."""
    if not folder.is_dir():
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
