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
    progress,
    quiet_loading,
    say,
    show_table,
    warn,
)
from foveate.cli.outputs import JsonFile, check_data, folder_option, not_among, write_json, write_text


def eval_(
    context: typer.Context,
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
    suite: Annotated[
        str | None,
        typer.Option(help="Suites of questions, comma-separated (`foveate list suites`); without --data `scenes`."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Own questions, alone or beside --suite: a JSONL, JSON, CSV or Parquet file, a folder of images, or "
            "a data set (a folder of the datasets library, or a Hub id).",
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(help="The question of rows or images that have none.")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field", metavar="OURS=THEIRS", help="What the data calls a field; repeatable: question=query."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="[TASK=]NAME",
            help="How answers are scored, for one task or for all; repeatable: exact, contains, f1, anls, relaxed, "
            "choice, vqa, agreement, identical, kl, same-tokens.",
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(help="With --data: 'generate' answers, or 'score' how probable the dense answer or a choice is."),
    ] = "generate",
    score_tokens: Annotated[
        int, typer.Option(min=1, help="First tokens of the dense answer by which kl and same-tokens compare.")
    ] = 8,
    bad_rows: Annotated[
        str,
        typer.Option(help="Rows that cannot be used: 'fail' before anything is answered, or 'skip', named."),
    ] = "fail",
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch images that the data names by URL.")] = False,
    split: Annotated[str | None, typer.Option(help="Split of a data set.")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a data set of the Hub.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a video that are shown.")] = 8,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of questions; by default 450 of each suite, and all of --data.")
    ] = None,
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
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    gallery: Annotated[
        int, typer.Option(min=0, help="Keep so many questions with changed answers and their images, for a report.")
    ] = 0,
    timed: Annotated[
        int, typer.Option("--time", metavar="ROUNDS", min=0, help="Time each arm beside the dense model, in rounds.")
    ] = 0,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Compare methods and budgets with the dense model, beside random tokens and a smaller image.

    Runs under `accelerate launch`, too.
    """
    from foveate.measure.eval.data.questions import data_settings
    from foveate.measure.eval.evaluate import (
        JOURNAL,
        RESULT,
        TABLES,
        EvalSettings,
        check_settings,
        evaluate,
        load_examples,
    )
    from foveate.measure.eval.metrics import parse_metrics
    from foveate.measure.eval.suites import parse_suites
    from foveate.measure.eval.tables import NOT_PRUNED, OFF_BUDGET, OUT_OF_REACH, markdown, result_notes, result_tables
    from foveate.measure.loading import check_place, load_model
    from foveate.measure.processes import alone_by_mistake, current
    from foveate.pruners.budget import parse_keeps
    from foveate.pruners.spec import parse_methods

    # 1. options
    check_data(context, data, json_file)
    not_among((JOURNAL, RESULT, TABLES), out, json_file)
    given: dict[str, Any] = {"fields": tuple(field or ()), "question": question, "split": split, "subset": subset}
    given |= {"allow_urls": allow_urls, "bad_rows": bad_rows, "frames": frames}
    settings: Any = EvalSettings(
        methods=tuple(parse_methods(methods)),
        keeps=parse_keeps(keep),
        suites=() if suite is None else parse_suites(suite),
        samples=samples or 450,
        seed=seed,
        layer=layer,
        oracle=oracle,
        budget=budget,  # type: ignore[arg-type]
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        gallery=gallery,
        timed=timed,
        data=data_settings(data, samples=samples, **given),
        metrics=parse_metrics(metric or ()),
        mode=mode,  # type: ignore[arg-type]
        score_tokens=score_tokens,
    )
    check_settings(settings)
    check_place(device, dtype)
    processes = current()
    if alone_by_mistake():
        warn("one process only: on CPUs `accelerate launch` needs MPI for more; --multi_gpu does without, also there")
    examples = None
    # 2. look through the data, load, and answer
    with progress() as bar:
        bar.disable = bar.disable or not processes.main
        task = bar.add_task("preparing", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        if settings.data is not None:
            examples = load_examples(settings, out, advance)
            bar.reset(task, description=f"loading {model}", total=None)
        quiet_loading()
        loaded = load_model(model, processes.device(device), dtype)
        bar.reset(task, total=None)
        try:
            result = evaluate(loaded, settings, out, fresh, advance, processes, examples)
        except KeyboardInterrupt:
            complain(f"stopped; what was answered is in {out}, and the same command continues there")
            raise typer.Exit(130) from None
    if not processes.main:
        return
    # 3. show, and write
    for table in result_tables(result):
        show_table(table.title, table.columns, table.rows)
    for note in result_notes(result):
        (warn if note.startswith((NOT_PRUNED, OFF_BUDGET, OUT_OF_REACH)) else say)(note)
    for row in result["skipped_rows"]:
        warn(f"left out: {row}")
    write_json(out / RESULT, result)
    write_text(out / TABLES, markdown(result))
    say(f"result: {out / RESULT}, tables: {out / TABLES}")
    if json_file:
        write_json(json_file, result)
