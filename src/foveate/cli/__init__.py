"""The command line; one file per command."""

from foveate.cli.app import app, main

__all__ = ["app", "main"]
