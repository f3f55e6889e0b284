"""Where a command writes: checked before the work begins, and written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli.console import leave_standard_output
from foveate.errors import FoveateError

STANDARD = Path("-")  # standard output, for --json


class OutputError(FoveateError, OSError):
    """A file or folder that cannot be written; the message says which and why."""


def file_to_write(context: typer.Context, parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a file that could not be written, before anything is computed; nothing is made."""
    if path is not None:
        _check(path, _name(parameter), folder=False)
        _alone(context, path, _name(parameter))
    return path


def json_to_write(context: typer.Context, parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    """The same for JSON, where `-` is standard output."""
    leave_standard_output(path == STANDARD)
    return path if path == STANDARD else file_to_write(context, parameter, path)


def folder_to_write(context: typer.Context, parameter: typer.CallbackParam, path: Path) -> Path:
    """The same for a folder."""
    _check(path, _name(parameter), folder=True)
    _alone(context, path, _name(parameter))
    return path


def file_option(help: str) -> Any:
    """An option that names a file to write."""
    return typer.Option(metavar="FILE", callback=file_to_write, help=help)


def folder_option(help: str) -> Any:
    """An option that names a folder to write to."""
    return typer.Option(callback=folder_to_write, help=help)


def _name(parameter: typer.CallbackParam) -> str:
    return max(parameter.opts, key=len)


def _check(path: Path, option: str, folder: bool) -> None:
    try:
        if folder and path.exists() and not path.is_dir():
            raise OutputError(f"{option} {path}: there is a file of that name, and a folder is wanted")
        if not folder and path.is_dir():
            raise OutputError(f"{option} {path}: that is a folder, and a file is wanted")
        there = next(one for one in (path if folder else path.parent, *path.absolute().parents) if one.exists())
        if not there.is_dir():
            raise OutputError(f"{option} {path}: {there} is a file, not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise OutputError(f"{option} {path}: no right to write in {there}")
    except (OSError, ValueError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{option}: no such name can be written: {_reason(error)}") from error


def _alone(context: typer.Context, path: Path, option: str) -> None:
    """Refuse a file that another option of this command writes, too: one of the two would be lost."""
    others: dict[Path, str] = context.meta.setdefault(__name__, {})
    other = others.setdefault(path.resolve(), option)
    if other != option:
        raise OutputError(f"{option} {path}: {other} writes there, too")


def spare(inputs: Iterable[str | Path], *outputs: Path | None) -> None:
    """Refuse an output that would take the place of a file that the command reads."""
    read = {Path(one).resolve() for one in inputs if os.path.isfile(one)}
    for path in outputs:
        if path is not None and path.resolve() in read:
            raise OutputError(f"{path} is read by this command, and would be lost: write to another file")


def not_among(names: Iterable[str], folder: Path, path: Path | None) -> None:
    """Refuse a file that has the place of one that the command keeps in its folder."""
    if path is not None and path.resolve() in {(folder / name).resolve() for name in names}:
        raise OutputError(f"{path} is written by this command itself: write to another file")


def beside(folder: Path, path: Path | None) -> None:
    """Refuse a file in a folder that `foveate.load` is to read: one of its own might be lost."""
    if path is not None and path.resolve().parent == folder.resolve():
        raise OutputError(f"{path} lies among the files of --out: write to another folder")


def check_data(
    context: typer.Context, data: str | None, json_file: Path | None, instead: tuple[str, ...] = ()
) -> None:
    """Refuse options that say nothing with own questions, or without them, and a result in the place of those.

    Parameters
    ----------
    instead
        Names of the parameters that own questions take the place of.

    Raises
    ------
    DataError, OutputError
        Naming the option.
    """
    from foveate.measure.eval.data.errors import DataError

    for name in instead if data is not None else ("frames", "score_tokens"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise DataError(f"--{option} goes {'without' if data is not None else 'with'} --data")
    spare([] if data is None else [data], json_file)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what is there at the end takes its place, and on an error nothing does.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    new = path.with_name(f".new-{os.getpid()}-{path.name[-100:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield new
        new.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with written(path) as new:
        new.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write what a command measured."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    if path == STANDARD:
        sys.stdout.write(text)
    else:
        write_text(path, text)


JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        callback=json_to_write,
        help="Also write the result as JSON; - is standard output, and the rest then goes to standard error.",
    ),
]
