"""`foveate bench`: time, memory and operations beside the dense model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli.console import (
    Budget,
    Device,
    DType,
    Keeps,
    console,
    progress,
    quiet_loading,
    say,
    show_table,
    warn,
)
from foveate.cli.outputs import JsonFile, file_option, write_json, written


def bench(
    model: Annotated[str | None, typer.Option(help="A Hub id, a folder, or `tiny`, which is the default.")] = None,
    random_weights: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE",
            help="Published sizes with random weights: qwen2.5-vl-7b, llava-1.5-7b, llava-1.6-7b, qwen3-vl-8b.",
        ),
    ] = None,
    methods: Annotated[str, typer.Option(help="Methods, as for `foveate eval`.")] = ("greedyprune,btp,glimpseprune"),
    keep: Keeps = "0.22,0.11",
    budget: Budget = "after",
    visual: Annotated[
        str | None, typer.Option(help="Visual tokens of a sample, comma-separated; by default those of one image.")
    ] = None,
    text: Annotated[int, typer.Option(help="Text tokens of a sample.")] = 64,
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1",
    decode: Annotated[int, typer.Option(help="Tokens decoded in each run; 0 measures the prefill only.")] = 16,
    rounds: Annotated[int, typer.Option(help="Timed rounds; each runs every arm once.")] = 7,
    vision: Annotated[
        bool, typer.Option("--vision/--no-vision", help="Run the vision encoder, or encode the images beforehand.")
    ] = True,
    layers: Annotated[int | None, typer.Option(help="Fewer decoder layers, with --random-weights.")] = None,
    width: Annotated[int | None, typer.Option(help="Narrower layers, with --random-weights.")] = None,
    attention: Annotated[
        str | None, typer.Option(help="Attention backend: sdpa, eager, …; by default the model's.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Torch CPU threads; with 1, CPU time is reported instead of wall time.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for weights, words and pixels.")] = 0,
    device: Device = "auto",
    dtype: DType = "auto",
    json_file: JsonFile = None,
    plot: Annotated[
        Path | None,
        file_option("Draw realised against implied speed-up (PNG)."),
    ] = None,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict", help="Experimental: predict from the model's config and this machine's rates, without a run."
        ),
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --predict: also run the model, and compare.")
    ] = False,
    rates: Annotated[
        Path | None,
        file_option("With --predict: file to read the machine's rates from, or to save them to."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 if anything is slower or larger than dense.")
    ] = False,
) -> None:
    """Measure time to first token, decoding, memory and FLOPs, pruned and dense in one run, as ratios."""
    from foveate.errors import BudgetError
    from foveate.measure.bench import plot as figure
    from foveate.measure.bench.arms import check_methods
    from foveate.measure.bench.published_shapes import shape_named
    from foveate.measure.bench.result import WORDS, notes, tables
    from foveate.measure.bench.run import run
    from foveate.measure.bench.settings import BenchSettings, whole_numbers
    from foveate.measure.budget import AFTER
    from foveate.measure.check.check import attention_named
    from foveate.measure.loading import LoadError
    from foveate.pruners.budget import parse_keeps
    from foveate.pruners.spec import parse_methods
    from foveate.torch_state import threads as with_threads

    # 1. options that do not go together, before anything is loaded
    if model is not None and random_weights is not None:
        raise LoadError("either --model or --random-weights, not both")
    if random_weights is None and (layers is not None or width is not None):
        raise LoadError("--layers and --width go with --random-weights")
    check_options(predict, measure, rates, plot, check)
    settings = BenchSettings(
        methods=tuple(parse_methods(methods)),
        keeps=parse_keeps(keep),
        budget=budget,
        visual=() if visual is None else whole_numbers("visual", visual),
        text=text,
        batch=whole_numbers("batch", batch),
        decode=decode,
        rounds=rounds,
        vision=vision,
        seed=seed,
    )
    shape = None if random_weights is None else shape_named(random_weights).resized(layers, width)
    if predict and budget != AFTER:
        raise BudgetError("--predict takes --keep as the share after the cut: leave --budget out")
    config = None if shape is None or budget != AFTER else shape.config()
    check_methods(settings.methods, settings.keeps, config)
    attention_named(attention)
    if plot is not None:
        figure.need_matplotlib()
    # 2. predict, and measure
    with with_threads(threads):
        prediction = None
        if predict:
            name = random_weights or model or "tiny"
            prediction = predicted(name, shape, settings, device, dtype, rates, measure)
            if not measure:
                if json_file:
                    write_json(json_file, prediction)
                return
        loaded, about = _load(model or "tiny", random_weights, device, dtype, attention, layers, width, seed)
        with progress() as bar:
            task = bar.add_task("preparing", total=None)

            def advance(what: str, done: int, total: int) -> None:
                bar.update(task, description=what, completed=done, total=total)

            result = run(loaded, settings, advance, about)
    # 3. show, and write what was asked for
    for table in tables(result):
        show_table(table.title, table.columns, table.rows, WORDS)
    for note in notes(result):
        (warn if note.startswith("NOT PRUNED") else say)(note)
    if prediction is not None:
        result["predicted"] = {**prediction, "beside": show_beside(prediction, result)}
    if json_file:
        write_json(json_file, result)
    if plot is not None:
        with written(plot) as new:
            figure.draw(result, new)
        say(f"figure: {plot}")
    if check:
        _judge(result)


def _load(
    model: str,
    shape: str | None,
    device: str,
    dtype: str,
    attention: str | None,
    layers: int | None,
    width: int | None,
    seed: int,
) -> tuple[Any, dict[str, Any]]:
    """Return the model, and what the result is to say of it."""
    from foveate.measure.bench.published_shapes import shape_named
    from foveate.measure.bench.run import named_model, random_model

    with console(stderr=True).status(f"making {shape}" if shape else f"loading {model}"):
        quiet_loading()
        if shape is None:
            return named_model(model, device, dtype, attention), {}
        loaded = random_model(shape, device, dtype, attention or "sdpa", layers, width, seed)
    whole = shape_named(shape)
    resized = {"layers": layers, "width": width}
    full = {"layers": whole.depth, "width": whole.text["hidden_size"]}
    told = {name: f"{value} of {full[name]}" for name, value in resized.items() if value is not None}
    return loaded, {"random_weights": True, "sizes_of": whole.checkpoint, "resized": told}


def _judge(result: dict[str, Any]) -> None:
    """Say whether anything is slower or larger than dense, and end with exit code 1 then."""
    failures = result["check"]["failures"]
    for failure in failures:
        warn(f"FAILED: {failure['line']}")
    if failures:
        say(f"{len(failures)} failed. {result['check']['rule']}.", "bold red")
        raise typer.Exit(1)
    judged = sum(not entry["dense"] for entry in result["entries"])
    say(f"nothing is slower or larger than dense, of {judged} settings of methods. {result['check']['rule']}.")


def check_options(predict: bool, measure: bool, rates: Path | None, plot: Path | None, check: bool) -> None:
    """Refuse options that do not go together."""
    from foveate.measure.loading import LoadError

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
    name
        A Hub id, a folder or `tiny`; or what the shape is called.
    shape
        A published shape, instead of a name.
    settings
        As for the run.
    device, dtype
        As on the command line.
    file
        Rates to take, or where to keep those that are measured.
    measure
        Whether a run follows.
    """
    import torch

    from foveate.measure.loading import EMBEDDED, device_named, dtype_named
    from foveate.measure.predict.bench import (
        WORDS,
        config_named,
        predicted_notes,
        predicted_tables,
        predictions,
        rates_for,
    )

    place, kind = device_named(device), dtype_named(dtype)
    with console(stderr=True).status("measuring this machine's rates"):
        quiet_loading()
        config = config_named(name) if shape is None else shape.config()
        if not isinstance(kind, torch.dtype):
            stored = getattr(config, "dtype", None) if shape is None and name not in EMBEDDED else None
            usual = torch.float32 if place.type == "cpu" or name in EMBEDDED else torch.bfloat16
            kind = stored if isinstance(stored, torch.dtype) else usual
        rates = rates_for(config, place, kind, file)
    with progress() as bar:
        task = bar.add_task("predicting", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        result, rates = predictions(name, config, settings, rates, advance)
    if file is not None and (rates.here or not file.exists()):
        with written(file) as new:
            rates.save(new)
    for table in predicted_tables(result):
        show_table(table.title, table.columns, table.rows, WORDS)
    for note in predicted_notes(result):
        say(note)
    if settings.vision and not measure:
        say("The vision encoder is in no predicted figure; it takes the same time dense and pruned.")
    return result


def show_beside(prediction: dict[str, Any], result: dict[str, Any]) -> list[dict[str, Any]]:
    """Print predicted beside measured speed-ups; the rows."""
    from foveate.measure.predict.bench import WORDS, beside, beside_table

    rows = beside(prediction, result)
    table = beside_table(rows)
    show_table(table.title, table.columns, table.rows, WORDS)
    if result["settings"]["vision"]:
        say("Predicted with the seconds that the vision encoder was measured to take in the dense run.")
    return rows
