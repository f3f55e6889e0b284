"""`foveate bench --predict`: what to expect, without running the model."""

from pathlib import Path
from typing import Any

from foveate.cli.console import console, progress, quiet_loading, say, show_table
from foveate.measure.loading import LoadError


def check_options(predict: bool, measure: bool, rates: Path | None, plot: Path | None, check: bool) -> None:
    """Refuse options that do not go together."""
    if not predict and (measure or rates is not None):
        raise LoadError("--measure and --rates go with --predict")
    if predict and not measure and (plot is not None or check):
        raise LoadError("--plot and --check are about what is measured: add --measure to --predict")


def predicted(
    name: str, shape: Any, settings: Any, device: str, dtype: str, file: Path | None, measure: bool
) -> dict[str, Any]:
    """Predict, and print the tables; the result.

    Parameters
    ----------
    name : str
        A Hub id, a folder or ``tiny``; or what the shape is called.
    shape : Shape or None
        A published shape, instead of a name.
    settings : BenchSettings
        As for the run.
    device, dtype : str
        As on the command line.
    file : Path or None
        Rates to take, or where to keep those that are measured.
    measure : bool
        Whether a run follows.
    """
    import torch

    from foveate.measure.loading import device_named, dtype_named
    from foveate.measure.predict.bench import config_named, predictions, rates_for
    from foveate.measure.predict.tables import WORDS, predicted_notes, predicted_tables

    place, kind = device_named(device), dtype_named(dtype)
    with console(stderr=True).status("measuring this machine's rates"):
        quiet_loading()
        config = config_named(name) if shape is None else shape.config()
        if not isinstance(kind, torch.dtype):
            stored = getattr(config, "dtype", None) if shape is None and name != "tiny" else None
            usual = torch.float32 if place.type == "cpu" or name == "tiny" else torch.bfloat16
            kind = stored if isinstance(stored, torch.dtype) else usual
        rates = rates_for(config, place, kind, file)
    with progress() as bar:
        task = bar.add_task("predicting", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        result, rates = predictions(name, config, settings, rates, advance)
    if file is not None and (rates.here or not file.exists()):
        rates.save(file)
    for table in predicted_tables(result):
        show_table(table.title, table.columns, table.rows, WORDS)
    for note in predicted_notes(result):
        say(note)
    if settings.vision and not measure:
        say("The vision encoder is in no predicted figure; it takes the same time dense and pruned.")
    return result


def show_beside(prediction: dict[str, Any], result: dict[str, Any]) -> list[dict[str, Any]]:
    """Print predicted beside measured speed-ups; the rows."""
    from foveate.measure.predict.bench import beside
    from foveate.measure.predict.tables import WORDS, beside_table

    rows = beside(prediction, result)
    table = beside_table(rows)
    show_table(table.title, table.columns, table.rows, WORDS)
    if result["settings"]["vision"]:
        say("Predicted with the seconds that the vision encoder was measured to take in the dense run.")
    return rows
