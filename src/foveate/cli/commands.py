"""What holds for every command: how errors are reported, and what no option means."""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from foveate.cli.console import complain
from foveate.errors import FoveateError

UsageError: Any = typer.BadParameter.__bases__[0]  # of click, which newer versions of typer bring themselves
WHOLE = 2**32 - 1  # largest whole number of an option: NumPy takes no larger seed


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Print an expected error on one line and exit with code 2; let others raise."""
    try:
        yield
    except FoveateError as error:
        complain(error)
        raise typer.Exit(2) from None
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        see = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        complain(error.format_message() + see)
        raise typer.Exit(2) from None


class Commands(TyperGroup):
    """All commands; their errors take one line."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Refuse what cannot be written in UTF-8: neither tokenizers nor JSON files take it."""
        with one_line():
            for word in args:
                try:
                    word.encode("utf-8")
                except UnicodeEncodeError:
                    raise UsageError(f"an argument has bytes that are not UTF-8: {word!a}") from None
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with one_line():
            return super().invoke(ctx)


class Command(TyperCommand):
    """A command that refuses what no option of any command means: nothing at all, NaN, infinity, too large numbers."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and check."""
        before = "an argument"
        for word in args:
            if not word.strip() or re.fullmatch("--[a-z-]+=", word):
                raise UsageError(f"{before if not word.strip() else word.rstrip('=')} is empty", ctx)
            before = word if word.startswith("-") else "an argument"
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            wrong = isinstance(value, float) and not math.isfinite(value)
            if wrong or (isinstance(value, (int, float)) and abs(value) > WHOLE):
                what = "not a finite number" if wrong else f"beyond {WHOLE:,}"
                raise typer.BadParameter(f"{value} is {what}.", ctx, parameter)
        return rest
