"""`foveate train`: the parts that are learned."""

from typing import Any

import typer

app = typer.Typer(help="Train the parts that are learned.", no_args_is_help=True)


@app.command("tiny", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def tiny(context: typer.Context) -> Any:
    """Train the embedded model from a seed."""
    raise NotImplementedError
