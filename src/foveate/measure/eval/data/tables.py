"""Rows of a file, whatever its form: an index of where each row begins, and one row at a time."""

from __future__ import annotations

import csv
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from foveate.measure.eval.data.errors import DataError, RowError

CHUNK = 2**16  # characters of a JSON list that are read at once
LARGEST_CELL = 2**30  # characters of a CSV cell, which may hold an image
VIDEOS = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg")
LINES, CELLS, PARQUET = (".jsonl", ".ndjson", ".json"), (".csv", ".tsv"), (".parquet", ".pq")
MARK = b"\xef\xbb\xbf"  # with which some programs begin a file in UTF-8


class Table:
    """Rows by their place, each read from where it lies when it is asked for.

    Parameters
    ----------
    name
        Of the data, as it was given.
    folder
        What paths in it start from.
    """

    unit: ClassVar[str] = "row"

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    def __len__(self) -> int:
        raise NotImplementedError

    def row(self, place: int) -> Mapping[str, Any]:
        """Return the fields of a row.

        Raises
        ------
        RowError
            It cannot be read.
        """
        raise NotImplementedError

    def number(self, place: int) -> Any:
        """Return what people call the row."""
        return place

    def where(self, place: int) -> str:
        """Return file and row, for a message."""
        return f"{self.name}, {self.unit} {self.number(place)}"


class Lines(Table):
    """A file with one JSON object a line."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), path.parent)
        self._path, self._starts, self._numbers = path, array("Q"), array("Q")
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, 1):
                if line.strip() and line.strip() != MARK:
                    self._starts.append(start)
                    self._numbers.append(number)
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, place: int) -> int:
        return self._numbers[place]

    def row(self, place: int) -> Mapping[str, Any]:
        with self._path.open("rb") as file:
            file.seek(self._starts[place])
            return _object(file.readline())


class Items(Table):
    """A file that is one JSON list of objects; read in pieces, so that its size does not matter."""

    unit = "item"

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), path.parent)
        self._path, self._starts, self._sizes = path, array("Q"), array("Q")
        try:
            for start, size in _items(path):
                self._starts.append(start)
                self._sizes.append(size)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not in UTF-8: {error}") from error
        except (ValueError, RecursionError) as error:
            place = f"after item {len(self._starts) - 1}" if len(self._starts) else "at its start"
            raise DataError(f"{path}, {place}: this is no list in JSON: {error}") from error

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, place: int) -> Mapping[str, Any]:
        with self._path.open("rb") as file:
            file.seek(self._starts[place])
            return _object(file.read(self._sizes[place]))


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(data.removeprefix(MARK).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"it is not in UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"it is no JSON: {error}") from error
    if not isinstance(fields, Mapping):
        raise RowError(f"a row is a JSON object, got {type(fields).__name__}")
    return fields


def _items(path: Path) -> Iterator[tuple[int, int]]:
    """Where each item of a list begins and how long it is, in bytes."""
    decode = json.JSONDecoder().raw_decode
    with path.open(encoding="utf-8", newline="") as file:
        text, at, start = file.read(CHUNK), 0, 0  # `start`: bytes of the file before text[at]
        if text.startswith("\ufeff"):
            at, start = 1, len(MARK)

        def more() -> bool:
            nonlocal text, at
            piece = file.read(max(CHUNK, len(text)))
            text, at = text[at:] + piece, 0
            return bool(piece)

        def sign() -> str:
            nonlocal at, start
            while True:
                while at < len(text) and text[at] in " \t\r\n":
                    at, start = at + 1, start + 1
                if at < len(text) or not more():
                    return text[at : at + 1]

        def take(wanted: str) -> None:
            nonlocal at, start
            if sign() != wanted:
                raise ValueError(f"'{wanted}' is missing" + (f" before {sign()!r}" if sign() else " at the end"))
            at, start = at + 1, start + 1

        take("[")
        empty = sign() == "]"
        while not empty:
            sign()
            while True:
                try:
                    _, end = decode(text, at)
                except json.JSONDecodeError as error:
                    if more():
                        continue
                    raise ValueError(error.msg) from None
                if end < len(text) or not more():  # a number at the end of the piece may go on
                    break
            size = len(text[at:end].encode())
            yield start, size
            at, start = end, start + size
            if sign() == "]":
                break
            take(",")
        take("]")
        if sign():
            raise ValueError(f"there is more after the list: {sign()!r}")


class Sheet(Table):
    """A file of cells with commas, semicolons or tabs between them; the first line has the names."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), path.parent)
        self._path, self._starts, self._numbers = path, array("Q"), array("Q")
        with path.open("rb") as file:
            head = file.readline()
            self._sign = max("\t" if path.suffix.lower() == ".tsv" else ",;\t", key=head.decode("latin-1").count)
            file.seek(0)
            self._names, next_start, next_line = self._record(file)
            if len(set(self._names)) < len(self._names) or not all(name.strip() for name in self._names):
                raise DataError(f"{path}, line 1: the columns' names are {self._names}; each needs one of its own")
            while True:
                cells, start, number = None, next_start, 1 + next_line
                try:
                    cells, size, lines = self._record(file, start)
                except (csv.Error, UnicodeDecodeError) as error:
                    raise DataError(f"{path}, line {number}: {error}") from error
                if not size:
                    break
                next_start, next_line = start + size, next_line + lines
                if cells:
                    self._starts.append(start)
                    self._numbers.append(number)

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, place: int) -> int:
        return self._numbers[place]

    def row(self, place: int) -> Mapping[str, Any]:
        with self._path.open("rb") as file:
            file.seek(self._starts[place])
            cells, _, _ = self._record(file)
        if len(cells) != len(self._names):
            raise RowError(f"it has {len(cells)} cells, and the columns are {len(self._names)}")
        return {name: cell for name, cell in zip(self._names, cells, strict=True) if cell.strip()}

    def _record(self, file: Any, start: int = 0) -> tuple[list[str], int, int]:
        """The cells that begin here, how many bytes they are, and how many lines."""
        size = lines = 0

        def given() -> Iterator[str]:
            nonlocal size, lines
            for line in file:
                size, lines = size + len(line), lines + 1
                yield (line.removeprefix(MARK) if start == 0 and lines == 1 else line).decode("utf-8")

        with _large_cells():
            cells = next(csv.reader(given(), delimiter=self._sign, strict=True), [])
        return cells, size, lines


@contextmanager
def _large_cells() -> Iterator[None]:
    before = csv.field_size_limit(LARGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class ParquetFile(Table):
    """A Parquet file; the group of rows that was asked for last is in memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), path.parent)
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise missing(path) from error
        self._broken: Any = (pyarrow.ArrowException, OSError)
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
            sizes = [self._file.metadata.row_group(at).num_rows for at in range(self._file.num_row_groups)]
        except self._broken as error:
            raise DataError(f"{path} is no Parquet file, or a broken one: {_first(error)}") from error
        self._ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
        self._group: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, place: int) -> Mapping[str, Any]:
        group = bisect_right(self._ends, place)
        if self._group is None or self._group[0] != group:
            self._group = None  # before the next is read: one is enough
            try:
                self._group = group, self._file.read_row_group(group)
            except self._broken as error:
                raise RowError(f"its group of rows cannot be read: {_first(error)}") from error
        at = place - (self._ends[group - 1] if group else 0)
        return dict(self._group[1].slice(at, 1).to_pylist()[0])


class Saved(Table):
    """A table of the datasets library; rows come as they are stored, images and videos not decoded."""

    def __init__(self, name: str, table: Any, folder: Path) -> None:
        super().__init__(name, folder)
        self._table, self._raw = table, table.with_format("arrow")
        self._classes = {key: kind for key, kind in table.features.items() if hasattr(kind, "int2str")}

    def __len__(self) -> int:
        return len(self._table)

    def row(self, place: int) -> Mapping[str, Any]:
        fields = dict(self._raw[place].to_pylist()[0])
        for name, kind in self._classes.items():  # stored as numbers
            if fields[name] is not None:
                fields[name] = kind.int2str(fields[name])
        return fields


class Files(Table):
    """A folder of images and videos: a row each, with what `name.json` or `name.txt` beside it says."""

    unit = "file"

    def __init__(self, folder: Path, files: list[str], question: bool) -> None:
        super().__init__(str(folder), folder)
        self._files, self._question = files, question

    def __len__(self) -> int:
        return len(self._files)

    def number(self, place: int) -> str:
        return self._files[place]

    def row(self, place: int) -> Mapping[str, Any]:
        path = self.folder / self._files[place]
        fields = {"video" if path.suffix.lower() in VIDEOS else "image": self._files[place]}
        text, data = path.with_suffix(".txt"), path.with_suffix(".json")
        if data.is_file():
            return {**fields, **_object(data.read_bytes())}
        if text.is_file():
            try:
                return {**fields, "question": text.read_text(encoding="utf-8-sig")}
            except UnicodeDecodeError as error:
                raise RowError(f"{text.name} is not in UTF-8: {error}") from error
        if self._question:
            return fields
        raise RowError(f"there is neither {text.name} nor {data.name} with its question; --question gives one for all")


def missing(name: Any) -> DataError:
    """The error where the libraries of the extra are not installed."""
    return DataError(f"{name} needs the libraries of an extra: pip install 'foveate[eval]'")


def _first(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def open_table(name: str, split: str | None = None, subset: str | None = None, question: bool = False) -> Table:
    """Return the rows of a file, of a folder, or of a data set of the Hub.

    Parameters
    ----------
    name
        A file (JSONL, JSON, CSV, TSV, Parquet), a folder that the datasets library wrote or can read, a folder of
        images and videos, or the name of a data set of the Hub.
    split, subset
        Which part of a data set.
    question
        There is a question for all images: those of a folder need none beside them.

    Raises
    ------
    DataError
        There is nothing of that name, nothing that can be read, or no row in it.
    """
    path = Path(name)
    try:
        if os.path.isfile(name):
            table = _file(path)
        elif os.path.isdir(name):
            table = _folder(path, split, subset, question)
        elif name.count("/") == 1 and not name.startswith((".", "/", "~")) and not path.suffix:
            table = _hub(name, split, subset)
        else:
            raise DataError(f"no file or folder {name}")
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error
    if not isinstance(table, Saved) and (split or subset):
        raise DataError(f"{name} has no parts: --split and --subset are for data sets of the datasets library")
    if not len(table):
        raise DataError(f"{name} has no row")
    return table


def _file(path: Path) -> Table:
    suffix = path.suffix.lower()
    if suffix in CELLS:
        try:
            return Sheet(path)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line 1: {error}") from error
    if suffix in PARQUET:
        return ParquetFile(path)
    if suffix in LINES:
        with path.open("rb") as file:
            head = file.read(CHUNK).removeprefix(MARK).lstrip()
        return Items(path) if head.startswith(b"[") else Lines(path)
    raise DataError(f"{path}: data is a file of the forms {', '.join((*LINES, *CELLS, *PARQUET))}, or a folder")


def _folder(folder: Path, split: str | None, subset: str | None, question: bool) -> Table:
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        datasets = _datasets(folder)
        return _part(str(folder), lambda: datasets.load_from_disk(str(folder)), split, folder)
    known = {*Image.registered_extensions(), *VIDEOS}
    files = sorted(
        (Path(root) / one).relative_to(folder).as_posix()
        for root, _, names in os.walk(folder)
        for one in names
        if Path(one).suffix.lower() in known
    )
    if files:
        return Files(folder, files, question)
    if any(folder.rglob("*.parquet")) or any(folder.rglob("*.arrow")):
        datasets = _datasets(folder)
        return _part(str(folder), lambda: datasets.load_dataset(str(folder), subset), split, folder)
    raise DataError(f"{folder} holds no image, no video, and no data set of the datasets library")


def _hub(name: str, split: str | None, subset: str | None) -> Table:
    from foveate.measure.loading import hub_answers

    datasets = _datasets(name)
    if not hub_answers():
        raise DataError(f"no file or folder {name}, and the Hub does not answer: is it a data set there?")
    return _part(name, lambda: datasets.load_dataset(name, subset), split, Path.cwd())


def _datasets(name: Any) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise missing(name) from error
    return datasets


def _part(name: str, load: Any, split: str | None, folder: Path) -> Table:
    import datasets

    # IndexError: a table without rows
    broken = (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError)
    datasets.disable_progress_bars()
    try:
        found = load()
    except broken as error:
        raise DataError(f"the datasets library cannot read {name}: {_first(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        if split is None and len(found) == 1:
            split = next(iter(found))
        if split not in found:
            raise DataError(f"{name} has the splits {', '.join(found)}; give one with --split")
        found = found[split]
    elif split is not None and str(found.split) != split:
        raise DataError(f"{name} has no splits to choose '{split}' from")
    return Saved(name, found, folder)
