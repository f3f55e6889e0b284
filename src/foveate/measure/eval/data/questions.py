"""Own data as a sequence of questions: looked through once, then each row read when it is its turn."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.measure.eval.data.errors import DataError, RowError
from foveate.measure.eval.data.fields import Names, Row, parse_names, read_row
from foveate.measure.eval.data.media import Media
from foveate.measure.eval.data.tables import Table, open_table
from foveate.measure.eval.metrics import ALL, METRICS, Metrics
from foveate.measure.eval.suites import Example

PATCH = 28**2  # pixels of a visual token, about: for the order of batches only
WINDOW = 32  # batches within which questions are sorted by length, so that rows are read near each other
NAMED = 5  # bad rows that an error names; all of them are too many for a line


@dataclass(frozen=True)
class DataSettings:
    """Where own questions come from.

    Parameters
    ----------
    name
        A file, a folder, or a data set of the Hub, see `open_table`.
    fields
        `ours=theirs`, see `parse_names`.
    question
        For rows that have none.
    split, subset
        Which part of a data set.
    samples
        At most so many rows, drawn at random by the seed; `None` takes all.
    allow_urls
        Fetch images by URL.
    skip_bad
        Leave out rows that cannot be used, and name them, instead of refusing the data.
    frames
        Frames of a video that are shown.
    """

    name: str
    fields: tuple[str, ...] = ()
    question: str | None = None
    split: str | None = None
    subset: str | None = None
    samples: int | None = None
    allow_urls: bool = False
    skip_bad: bool = False
    frames: int = 8

    @property
    def short_name(self) -> str:
        """A file or folder without its path, which may name a person; a data set of the Hub as it is."""
        return os.path.basename(os.path.abspath(self.name)) if os.path.exists(self.name) else self.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "name": self.short_name, "fields": list(self.fields)}


def data_settings(name: str | None, *, bad_rows: str = "fail", **given: Any) -> DataSettings | None:
    """Return the settings of own data as a command line gives them; `None` where there is none.

    Parameters
    ----------
    name
        Of the data, or `None`.
    bad_rows
        "fail" or "skip".
    **given
        Further fields of `DataSettings`.

    Raises
    ------
    DataError
        `bad_rows` is neither, a field's name is wrong, or a setting of own data is given without data.
    """
    if bad_rows not in ("fail", "skip"):
        raise DataError(f"--bad-rows is 'fail' or 'skip', got '{bad_rows}'")
    if name is not None:
        parse_names(given.get("fields", ()))
        return DataSettings(name, skip_bad=bad_rows == "skip", **given)
    without = [key for key in ("fields", "question", "split", "subset", "allow_urls") if given.get(key)]
    if bad_rows != "fail" or without:
        option = "bad-rows" if not without else {"fields": "field"}.get(without[0], without[0].replace("_", "-"))
        raise DataError(f"--{option} goes with --data")
    return None


@dataclass(frozen=True)
class Question(Example):
    """A question of one's own.

    Parameters
    ----------
    images, videos
        All that it is about; `image` is the first.
    answers
        All that count as right; empty where the truth is not known.
    choices
        Their texts.
    boxes
        (x1, y1, x2, y2) in shares of the first image.
    where
        The row, in words.
    """

    images: tuple[Image.Image, ...] = ()  # type: ignore[assignment]
    videos: tuple[tuple[Image.Image, ...], ...] = ()  # type: ignore[assignment]
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    where: str = ""


class OwnQuestions(Sequence[Question]):
    """Questions of a table; what is in memory is where the rows are.

    Parameters
    ----------
    table
        The rows.
    names
        Of their fields.
    media
        Opens images.
    places
        Rows that are used, in their order.
    lengths
        About how many tokens the prompt of each has.
    labelled
        Whether the truth is known of the questions that have the usual metrics: of all, or of none.
    fingerprint
        Short hash of questions, answers and images.
    tasks
        Kinds of questions, in their order.
    skipped
        Why rows were left out.
    """

    def __init__(
        self,
        table: Table,
        names: Names,
        media: Media,
        places: array[int],
        lengths: array[int],
        labelled: bool,
        fingerprint: str,
        tasks: tuple[str, ...],
        skipped: tuple[str, ...],
    ) -> None:
        self._table, self._names, self._media = table, names, media
        self._places, self._lengths = places, lengths
        self.labelled, self.fingerprint = labelled, fingerprint
        self.tasks, self.skipped = tasks, skipped

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        place = self._places[index]
        where = self._table.where(place)
        try:
            return _question(index, read_row(self._table.row(place), self._names), self._media, where)
        except RowError as error:
            raise DataError(f"{where}: {error}; it could be used before") from error

    def batches(self, size: int) -> list[list[int]]:
        """Return indices in batches of prompts of about the same length."""
        order: list[int] = []
        for start in range(0, len(self), WINDOW * size):
            window = range(start, min(start + WINDOW * size, len(self)))
            order += sorted(window, key=lambda at: self._lengths[at])
        return [order[at : at + size] for at in range(0, len(order), size)]


def _question(index: int, row: Row, media: Media, where: str, digest: Any = None) -> Question:
    images = tuple(media.image(one, digest) for one in row.images)
    videos = tuple(media.video(one, digest) for one in row.videos)
    first = images[0] if images else videos[0][0]
    boxes = row.boxes
    if any(value > 1 for box in boxes for value in box):  # pixels
        size = (*first.size, *first.size)
        boxes = tuple(tuple(value / whole for value, whole in zip(box, size, strict=True)) for box in boxes)
        if any(value > 1 for box in boxes for value in box):
            raise RowError(f"a box of {list(row.boxes)} reaches beyond the image of {first.width} x {first.height}")
    answer = row.answers[0] if row.answers else ""
    return Question(
        index,
        row.task,
        first,
        row.question,
        answer,
        images=images,
        videos=videos,
        answers=row.answers,
        choices=row.choices,
        boxes=boxes,
        where=where,
    )


def _check_metrics(row: Row, named: tuple[str, ...]) -> None:
    for name in named:
        if METRICS[name].needs == "truth" and not row.answers:
            raise RowError(f"it has no answer, and the metric '{name}' needs one")
        if name == "choice" and not row.choices:
            raise RowError("it has no choices, and the metric 'choice' needs them")


def _check_tasks(metrics: Metrics, tasks: Iterable[str]) -> None:
    """Refuse metrics for a task that no row is of."""
    for task in metrics.by_task:
        if task not in {ALL, *tasks}:
            there = ", ".join(f"'{one}'" for one in tasks)
            raise DataError(f"--metric {task}=…: no row is of the task '{task}'; there are {there}")


def load_questions(
    settings: DataSettings,
    metrics: Metrics | None = None,
    mode: str = "generate",
    seed: int = 0,
    downloads: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> OwnQuestions:
    """Look through all rows, their images included, and return those that can be used.

    Parameters
    ----------
    settings
        Where they come from.
    metrics, mode
        By which answers are scored, and how they are made: a row must have what that needs.
    seed
        Of the draw, where not all are wanted.
    downloads
        Folder for what is fetched.
    progress
        Called with what is done, how many rows and of how many.

    Raises
    ------
    DataError
        There is no such data, no row that can be used, or one that cannot and is not to be skipped; the message names
        file, row and reason.
    """
    metrics = metrics or Metrics()
    names = parse_names(settings.fields, settings.question)
    table = open_table(settings.name, settings.split, settings.subset, settings.question is not None)
    media = Media(table.folder, settings.allow_urls, downloads, settings.frames)
    taken: Sequence[int] = range(len(table))
    if settings.samples is not None and settings.samples < len(table):
        taken = sorted(random.Random(seed).sample(taken, settings.samples))
    places, lengths, unlabelled = array("Q"), array("Q"), array("Q")
    tasks: dict[str, None] = {}
    bad: dict[int, str] = {}
    digest, labelled = hashlib.sha256(), False
    for done, place in enumerate(taken, 1):
        try:
            row = read_row(table.row(place), names)
            media_digest = hashlib.sha256()
            question = _question(0, row, media, "", media_digest)
            named = metrics.named(row.task)
            _check_metrics(row, named)
        except RowError as error:
            bad[place] = str(error)
        else:
            digest.update(
                repr(replace(row, images=(), videos=())).encode("utf-8", "surrogatepass") + media_digest.digest()
            )
            places.append(place)
            shown = (*question.images, *(frame for film in question.videos for frame in film))
            pixels = sum(one.width * one.height for one in shown)
            lengths.append(pixels // PATCH + len(row.question) // 4)
            tasks[sys.intern(row.task)] = None
            if not named:  # the usual metrics, of questions with answers or of those without
                labelled = labelled or bool(row.answers)
                if not row.answers:
                    unlabelled.append(place)
        if progress:
            progress("looking through the data", done, len(taken))
    if labelled:
        bad |= dict.fromkeys(unlabelled, "it has no answer, and other rows have one")
    told = [f"{table.unit} {table.number(place)}: {bad[place]}" for place in sorted(bad)]
    if bad and (not settings.skip_bad or len(bad) == len(taken)):
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        how = "" if settings.skip_bad else " (--bad-rows skip leaves them out)"
        raise DataError(
            f"{len(bad)} of {len(taken)} rows of {table.name} cannot be used{how}: {'; '.join(told[:NAMED])}{more}"
        )
    if len(taken) == len(table) and not bad:  # else a task may be among what was left out
        _check_tasks(metrics, tasks)
    kept = [at for at, place in enumerate(places) if place not in bad]
    return OwnQuestions(
        table,
        names,
        media,
        array("Q", (places[at] for at in kept)),
        array("Q", (lengths[at] for at in kept)),
        labelled,
        digest.hexdigest()[:16],
        tuple(tasks),
        tuple(told),
    )
