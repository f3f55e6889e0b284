"""Results from disk: the JSON of `foveate eval`, and beside it every answer and the gallery, where they are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError
from foveate.measure.eval.evaluate import JOURNAL, RESULT
from foveate.measure.eval.gallery import ENTRIES, GALLERY
from foveate.measure.report.shape import damage

FORMAT = "foveate-eval-"


class ReportError(FoveateError, ValueError):
    """A result that cannot be read, or results that cannot be compared; the message names the file."""


@dataclass(frozen=True)
class EvalResult:
    """One evaluation.

    Parameters
    ----------
    name
        The folder's name, or the file's; different for each result of a report.
    path
        Of the JSON.
    data
        Its content.
    gallery
        Entries of the gallery beside it; empty where there is none.
    """

    name: str
    path: Path
    data: dict[str, Any]
    gallery: list[dict[str, Any]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Return model and questions, in words."""
        shared = self.data["configuration"]
        return f"{shared['model']} on {shared['samples']} questions of '{shared['suite']}'"

    @property
    def timed(self) -> bool:
        """Say whether the arms have times."""
        return all("time" in arm for arm in self.data["arms"])

    def image(self, entry: dict[str, Any]) -> Path:
        """Return the file of a gallery's image."""
        return self.path.parent / GALLERY / Path(entry["image"]).name

    def answers(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Return every answer by arm and question.

        Raises
        ------
        ReportError
            There is no journal of answers beside the result, or it is not this result's.
        """
        path = self.path.parent / JOURNAL
        if not path.is_file():
            raise ReportError(f"no {JOURNAL} beside {self.path}: paired differences need each answer")
        rows: list[dict[str, Any]] = []
        try:
            for part in [path, *sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))]:  # of several processes
                first, *lines = part.read_text(encoding="utf-8").splitlines()
                journal = dict(json.loads(first)["configuration"])
                rows += [json.loads(line) for line in lines]
            found: dict[str, dict[int, dict[str, Any]]] = {}
            for row in rows:
                found.setdefault(row["arm"], {})[row["index"]] = row
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ReportError(f"{path} is not a journal of foveate eval") from error
        if journal.get("questions") != self.data["configuration"].get("questions"):
            raise ReportError(f"{path} holds answers to other questions than {self.path}")
        return found


def read_results(paths: list[Path]) -> list[EvalResult]:
    """Return the results of folders or JSON files, in their order.

    Raises
    ------
    ReportError
        A file that is not there or holds no result of `foveate eval`.
    """
    results: list[EvalResult] = []
    for path in paths:
        result = _read(path)
        names = [other.name for other in results]
        if result.name in names:
            number = next(at for at in range(2, len(names) + 3) if f"{result.name} {at}" not in names)
            result = EvalResult(f"{result.name} {number}", result.path, result.data, result.gallery)
        results.append(result)
    return results


def _read(path: Path) -> EvalResult:
    try:
        file = path / RESULT if path.is_dir() else path
    except OSError as error:  # a name that no file can have
        raise ReportError(f"cannot read {path}: {error.strerror or error}") from error
    data = _json(file)
    if not isinstance(data, dict) or not str(data.get("format")).startswith(FORMAT):
        raise ReportError(f"{file} is no result of foveate eval")
    missing = [key for key in ("configuration", "bootstrap", "tasks", "arms") if key not in data]
    if missing or not data["arms"]:
        raise ReportError(f"{file} is not whole: it has no {missing[0] if missing else 'arms'}")
    # what earlier releases did not write yet
    data = {"out_of_reach": [], "notes": [], **data}
    if isinstance(data["configuration"], dict):
        data["configuration"].setdefault("budget", "after")
    wrong = damage(data)
    if wrong:
        raise ReportError(f"{file} is damaged: {wrong}")
    for arm in data["arms"]:
        arm.setdefault("keep_is_mean", False)
    entries = file.parent / GALLERY / ENTRIES
    name = file.resolve().parent.name if file.name == RESULT else file.stem
    return EvalResult(name, file, data, _json(entries) if entries.is_file() else [])


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is not JSON: {error}") from error
