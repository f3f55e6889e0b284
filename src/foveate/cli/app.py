"""`foveate`: the commands."""

import typer

from foveate import __version__
from foveate.cli import bench, calibrate, check, demo, eval, list, report, run, serve, train, tune
from foveate.cli.commands import Command, Commands
from foveate.cli.console import speak_any_encoding

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


app.command("demo", cls=Command)(demo.demo)
app.command("run", cls=Command)(run.run)
app.command("check", cls=Command)(check.check)
app.command("list", cls=Command)(list.list_)
app.command("eval", cls=Command)(eval.eval_)
app.command("bench", cls=Command)(bench.bench)
app.command("report", cls=Command)(report.report)
app.command("tune", cls=Command)(tune.tune)
app.command("serve", cls=Command)(serve.serve)
training = typer.Typer(help="Train the learned parts.", no_args_is_help=True)
training.command("glimpse", cls=Command)(train.glimpse)
training.command("glimpse-plus", cls=Command)(train.glimpse_plus)
training.command("ocvtp", cls=Command)(train.ocvtp)
training.command("tiny", cls=Command)(train.tiny)
app.add_typer(training, name="train")
calibration = typer.Typer(help="Fit a method to a model, without training.", no_args_is_help=True)
calibration.command("btp", cls=Command)(calibrate.btp)
app.add_typer(calibration, name="calibrate")


def main() -> None:
    """Run the command line."""
    speak_any_encoding()
    app()
