"""One line a finished question, so that an evaluation that was stopped continues where it was."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError
from foveate.measure.resume import differences


class JournalMismatch(FoveateError, ValueError):
    """The folder holds answers of another configuration; mixing the two would make a result of neither."""


class Journal:
    """Answers on disk, by arm and question.

    Parameters
    ----------
    path
        A JSONL file: the configuration on the first line, then one line an answer.
    configuration
        What every answer in the file has in common. A file of another configuration is refused.
    fresh
        Throw away what is there.
    """

    def __init__(self, path: Path, configuration: dict[str, Any], fresh: bool = False) -> None:
        self.path = path
        self.rows: dict[tuple[str, int], dict[str, Any]] = {}
        configuration = json.loads(json.dumps(configuration))
        if path.exists() and not fresh:
            self._read(configuration)
        if not self.path.exists() or fresh or not self.path.stat().st_size:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"configuration": configuration}) + "\n", encoding="utf-8")

    def _read(self, configuration: dict[str, Any]) -> None:
        text = self.path.read_text(encoding="utf-8")
        if not text.endswith("\n"):  # stopped in the middle of a line: that answer is asked again
            text = text[: text.rfind("\n") + 1]
            self.path.write_text(text, encoding="utf-8")
        lines = text.splitlines()
        if not lines:
            return
        try:
            earlier = json.loads(lines[0])["configuration"]
            rows = [json.loads(line) for line in lines[1:]]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise JournalMismatch(f"{self.path} is not a journal of foveate eval: give another --out") from error
        was = differences(earlier, configuration)
        if was:
            raise JournalMismatch(
                f"{self.path} was made with another configuration: {was}. Give another --out, or --fresh to start over"
            )
        self.rows = {(row["arm"], row["index"]): row for row in rows}

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append finished answers; they are on disk when this returns."""
        rows = list(rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.rows.update({(row["arm"], row["index"]): row for row in rows})

    def missing(self, arm: str, indices: Iterable[int]) -> bool:
        """Say whether any of these questions has no answer of this arm yet."""
        return any((arm, index) not in self.rows for index in indices)

    def arm(self, arm: str, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Return an arm's answers in the order of `indices`."""
        return [self.rows[arm, index] for index in indices]
