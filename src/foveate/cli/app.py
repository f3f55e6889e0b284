"""`foveate`: the commands and how their errors are reported."""

from typing import Any

import typer
from typer.core import TyperGroup

from foveate import __version__
from foveate.cli import bench, calibrate, check, demo, eval, list, run, train
from foveate.cli.console import complain, speak_any_encoding
from foveate.errors import FoveateError


class Commands(TyperGroup):
    """Print expected errors on one line and exit with code 2; let others raise."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except FoveateError as error:
            complain(error)
            raise typer.Exit(2) from None


app = typer.Typer(
    name="foveate",
    cls=Commands,
    help="Visual-token pruning for vision-language models, measured beside the dense model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"foveate {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Global options."""


app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("check")(check.check)
app.command("list")(list.list_)
app.command("eval")(eval.eval_)
app.command("bench")(bench.bench)
training = typer.Typer(help="Train the learned parts.", no_args_is_help=True)
training.command("glimpse")(train.glimpse)
training.command("glimpse-plus")(train.glimpse_plus)
training.command("tiny")(train.tiny)
app.add_typer(training, name="train")
calibration = typer.Typer(help="Fit a method to a model, without training.", no_args_is_help=True)
calibration.command("btp")(calibrate.btp)
app.add_typer(calibration, name="calibrate")


def main() -> None:
    """Run the command line."""
    speak_any_encoding()
    app()
