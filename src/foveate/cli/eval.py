"""`foveate eval`: accuracy kept against the dense model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli.console import (
    Budget,
    Device,
    DType,
    Keeps,
    complain,
    console,
    progress,
    quiet_loading,
    say,
    show_table,
    warn,
)
from foveate.cli.outputs import JsonFile, folder_option, write_json, write_text


def eval_(
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, comma-separated, options after a colon: greedyprune:layer=0,threshold=0.7,fastv. "
            "A folder is a saved pruner."
        ),
    ] = "greedyprune",
    keep: Keeps = "0.5,0.22,0.11",
    model: Annotated[str, typer.Option(help="A Hub id, a folder, or `tiny`, the embedded model.")] = "tiny",
    budget: Budget = "after",
    suite: Annotated[str, typer.Option(help="Suite of questions: scenes, scenes-hard or reading.")] = "scenes",
    samples: Annotated[int, typer.Option(min=1, help="Number of questions.")] = 450,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for questions, draws and bootstrap.")] = 0,
    layer: Annotated[
        int | None, typer.Option(min=0, help="Cut before this layer, for all methods with one stage.")
    ] = None,
    oracle: Annotated[bool, typer.Option("--oracle", help="Add the diagnostic that is given the evidence.")] = False,
    out: Annotated[
        Path,
        folder_option("Folder for answers and results; a stopped run continues there."),
    ] = Path("foveate-eval"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    json_file: JsonFile = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 8,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Compare methods and budgets with the dense model, beside random tokens and a smaller image."""
    from foveate.measure.eval.evaluate import RESULT, TABLES, EvalSettings, check_settings, evaluate
    from foveate.measure.eval.tables import NOT_PRUNED, OFF_BUDGET, OUT_OF_REACH, markdown, result_notes, result_tables
    from foveate.measure.loading import load_model
    from foveate.pruners.budget import parse_keeps
    from foveate.pruners.spec import parse_methods

    # 1. options
    settings: Any = EvalSettings(
        methods=tuple(parse_methods(methods)),
        keeps=parse_keeps(keep),
        suite=suite,
        samples=samples,
        seed=seed,
        layer=layer,
        oracle=oracle,
        budget=budget,  # type: ignore[arg-type]
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    check_settings(settings)
    # 2. load, and answer
    with console(stderr=True).status(f"loading {model}"):
        quiet_loading()
        loaded = load_model(model, device, dtype)
    with progress() as bar:
        task = bar.add_task("preparing", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        try:
            result = evaluate(loaded, settings, out, fresh, advance)
        except KeyboardInterrupt:
            complain(f"stopped; what was answered is in {out}, and the same command continues there")
            raise typer.Exit(130) from None
    # 3. write, and show
    write_json(out / RESULT, result)
    write_text(out / TABLES, markdown(result))
    for table in result_tables(result):
        show_table(table.title, table.columns, table.rows)
    for note in result_notes(result):
        (warn if note.startswith((NOT_PRUNED, OFF_BUDGET, OUT_OF_REACH)) else say)(note)
    say(f"result: {out / RESULT}, tables: {out / TABLES}")
    if json_file:
        write_json(json_file, result)
