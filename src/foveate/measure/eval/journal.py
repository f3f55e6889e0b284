"""Answers on disk as they come, so that a run that was killed continues; what is in memory is where they lie."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import FoveateError
from foveate.measure.processes import Processes
from foveate.measure.resume import differences

NOWHERE = -1


class JournalMismatch(FoveateError, ValueError):
    """The folder holds answers of another configuration; mixing the two would make a result of neither."""


class Rows(Sequence[dict[str, Any]]):
    """Rows of a journal, read when they are asked for.

    Parameters
    ----------
    paths
        The files.
    places
        (n, 2) int64. Of each row its file and where it begins there.
    """

    def __init__(self, paths: Sequence[Path], places: NDArray[np.int64]) -> None:
        self._paths, self._places = paths, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return list(Rows(self._paths, self._places[at]))
        return next(iter(Rows(self._paths, self._places[[at]])))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        files = {}
        try:
            for number, start in self._places.tolist():
                if number not in files:
                    files[number] = self._paths[number].open("rb")
                files[number].seek(start)
                yield json.loads(files[number].readline())
        finally:
            for file in files.values():
                file.close()


class Journal:
    """Answers by arm and question.

    Parameters
    ----------
    path
        A JSONL file: the configuration on the first line, then one line an answer. Each process but the main one has a
        file of its own beside it.
    configuration
        What every answer in the files has in common. A file of another configuration is refused.
    questions
        How many there are.
    fresh
        Throw away what is there.
    processes
        They share the work; each writes what it answers.
    """

    def __init__(
        self,
        path: Path,
        configuration: dict[str, Any],
        questions: int,
        fresh: bool = False,
        processes: Processes | None = None,
    ) -> None:
        processes = processes or Processes()
        self._main, self._questions = path, questions
        self._own = path if processes.main else path.with_name(f"{path.stem}-{processes.index}{path.suffix}")
        self._configuration = json.loads(json.dumps(configuration))
        self._paths: list[Path] = []
        self._places: dict[str, NDArray[np.int64]] = {}
        error = None
        if processes.main:
            try:
                self._begin(fresh)
            except JournalMismatch as mismatch:
                error = mismatch
        error = processes.from_main(error)
        if error is not None:
            raise error
        if not processes.main:
            self._begin(False)

    def _begin(self, fresh: bool) -> None:
        if fresh:
            for path in self._there():
                path.unlink()
        self.read()
        if self._own in self._paths:
            text = self._own.read_bytes()
            whole = text.rfind(b"\n") + 1
            if whole < len(text):  # stopped in the middle of a line: that answer is asked again
                os.truncate(self._own, whole)
        if not self._own.exists() or not self._own.stat().st_size:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            self._append([{"configuration": self._configuration}])
        if self._own not in self._paths:
            self._paths.append(self._own)

    def _there(self) -> list[Path]:
        others = self._main.parent.glob(f"{self._main.stem}-*{self._main.suffix}")
        return [path for path in (self._main, *sorted(others)) if path.is_file()]

    def read(self) -> None:
        """Take in what all processes have written.

        Raises
        ------
        JournalMismatch
            A file is no journal, or one of another configuration.
        """
        self._paths, self._places = self._there(), {}
        for number, path in enumerate(self._paths):
            self._read(number, path)

    def _read(self, number: int, path: Path) -> None:
        start = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line)
                    if start:
                        self._place(row["arm"], row["index"], number, start)
                    else:
                        earlier = dict(row["configuration"])
                except (ValueError, LookupError, TypeError) as error:
                    raise JournalMismatch(f"{path} is not a journal of foveate eval: give another --out") from error
                if not start and (was := differences(earlier, self._configuration)):
                    raise JournalMismatch(
                        f"{path} was made with another configuration: {was}. Give another --out, or --fresh to start "
                        "over"
                    )
                start += len(line)

    def _place(self, arm: str, index: int, number: int, start: int) -> None:
        if arm not in self._places:
            self._places[arm] = np.full((self._questions, 2), NOWHERE, dtype=np.int64)
        self._places[arm][index] = number, start

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append finished answers; they are on disk when this returns."""
        rows = list(rows)
        number = self._paths.index(self._own)
        for row, start in zip(rows, self._append(rows), strict=True):
            self._place(row["arm"], row["index"], number, start)

    def _append(self, rows: list[dict[str, Any]]) -> list[int]:
        starts = []
        with self._own.open("ab") as file:
            before = file.tell()
            try:
                for row in rows:
                    starts.append(file.tell())
                    file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:  # no space: no half of a line, after which nobody could go on
                file.truncate(before)
                raise
        return starts

    def missing(self, arm: str, indices: Sequence[int]) -> bool:
        """Say whether any of these questions has no answer of this arm yet."""
        return arm not in self._places or bool((self._places[arm][list(indices), 0] == NOWHERE).any())

    def arm(self, arm: str, indices: Sequence[int] | None = None) -> Rows:
        """Return an arm's answers, all or those of `indices`, in their order."""
        places = self._places[arm]
        return Rows(self._paths, places if indices is None else places[list(indices)])
