"""What the commands share: printing, with rich in a terminal and plain text elsewhere, and common options."""

import codecs
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

WRONG = "(wrong)"  # ends a cell that is to be seen at once
_left = False
NARROW = 20  # columns; a width under that is none
INSTEAD = {
    "λ": "lambda", "τ": "tau", "×": "x", "–": "-", "—": "-", "…": "...", "→": "->", "≤": "<=", "≥": ">=", "⌊": "",
    "⌋": "", "“": '"', "”": '"', "’": "'", "·": "*", "⌈": "", "⌉": "",
}  # fmt: skip
PLAIN_WIDTH = 200  # a file or a pipe has no width; tables take what they need up to this


def console(stderr: bool = False) -> Console:
    """Return where to print to."""
    stderr = stderr or _left
    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        return Console(stderr=stderr, highlight=False)
    given = os.environ.get("COLUMNS", "")
    width = int(given) if _sensible(given) else PLAIN_WIDTH
    return Console(stderr=stderr, highlight=False, width=width, no_color=True)


def _sensible(size: str) -> bool:
    return size.isascii() and size.isdigit() and NARROW <= int(size) <= 10_000


def leave_standard_output(wanted: bool) -> None:
    """Print what is for people on standard error instead: standard output is for the JSON of `--json -`."""
    global _left
    _left = wanted


def carried(error: UnicodeError) -> tuple[str, int]:
    """For a stream whose encoding lacks a character: one that it has, see `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(INSTEAD.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def speak_any_encoding() -> None:
    """Let output fall back to what its streams can carry, such as cp1252 of Windows or ASCII; ignore odd widths."""
    for name in ("COLUMNS", "LINES"):
        if not _sensible(os.environ.get(name, "")):
            os.environ.pop(name, None)  # rich would read it
    codecs.register_error("foveate", carried)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="foveate")


def say(text: str, style: str | None = None) -> None:
    """Print a line; a long one is wrapped in a terminal only."""
    out = console()
    out.print(escape(text), style=style, soft_wrap=not out.is_terminal)


def warn(text: str) -> None:
    """Print a line that must not be missed."""
    out = console(stderr=True)
    out.print(escape(text), style="bold yellow", soft_wrap=not out.is_terminal)


def complain(error: BaseException | str) -> None:
    """Print an error in one line."""
    line = " ".join(str(error).split())
    console(stderr=True).print(f"[bold red]foveate:[/] {escape(line)}", soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> None:
    """Print a table: drawn in a terminal, Markdown elsewhere.

    Parameters
    ----------
    title
        Line over the table.
    columns
        Heads.
    rows
        Cells, as plain text.
    text_columns
        How many of the first columns are words; the others are figures and stand on the right.
    """
    out = console()
    out.print(f"[bold]{escape(title)}[/]", soft_wrap=True)
    if not out.is_terminal:
        out.print(escape(_plain_table(columns, rows, text_columns)) + "\n", soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for at, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if at < text_columns else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style="red" if cell.endswith(WRONG) else "") for cell in row))
    out.print(table)


def _plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Return a Markdown table with even columns, never wrapped."""
    widths = [max(3, *(len(cells[at]) for cells in [columns, *rows])) for at in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if at < text_columns else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if at < text_columns else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join([line(columns), line(rule), *map(line, rows)])


def progress() -> Progress:
    """Return a progress display on standard error; silent when that is no terminal."""
    out = console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )


def quiet_loading() -> None:
    """Keep transformers' own bars and hints out of a command's output."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


Method = Annotated[
    str, typer.Option("--method", "-m", help="A method of `foveate list methods`, or the folder of a saved pruner.")
]
# text, in which a count (49) and a share (1.0) differ
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep", "-k", help="Visual tokens to keep: a share such as 0.22, or a count; a saved pruner has its own."
    ),
]
Keeps = Annotated[
    str,
    typer.Option(
        "--keep", "-k", help="Visual tokens to keep, comma-separated: shares such as 0.22, or counts such as 49."
    ),
]
Budget = Annotated[
    str,
    typer.Option(
        help="Meaning of --keep: the share 'after' the cut, or, solved for every method, the 'mean' share per layer, "
        "that of the 'kv' cache or that of the prefill's 'flops'."
    ),
]
MethodOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the method; repeatable.")
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, mps, …")]
DType = Annotated[str, typer.Option("--dtype", help="Data type: auto, float32, bfloat16 or float16.")]
