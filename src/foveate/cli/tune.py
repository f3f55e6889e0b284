"""`foveate tune`: the setting that reaches a goal on a model, its questions and this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli.console import (
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
from foveate.cli.outputs import JsonFile, check_data, folder_option, not_among, write_json

MOST_LAYERS = 1000  # that no model has


def tune(
    context: typer.Context,
    out: Annotated[Path, folder_option("Folder for answers, result and winner; a stopped run continues there.")],
    model: Annotated[str, typer.Option(help="A Hub id, a folder, or `tiny`, the embedded model.")] = "tiny",
    suite: Annotated[str, typer.Option(help="Suite of questions, see `foveate list suites`.")] = "scenes",
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Own questions, instead of a suite; as for `foveate eval`.")
    ] = None,
    question: Annotated[str | None, typer.Option(help="The question of rows or images that have none.")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="OURS=THEIRS", help="What the data calls a field; repeatable."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="[TASK=]NAME", help="How answers of --data are scored; repeatable."),
    ] = None,
    bad_rows: Annotated[
        str, typer.Option(help="Rows that cannot be used: 'fail' before anything is answered, or 'skip'.")
    ] = "fail",
    split: Annotated[str | None, typer.Option(help="Split of a data set.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of questions; by default 200 of a suite, and all of --data.")
    ] = None,
    max_loss: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Accuracy that may be lost, such as 1%: the fastest wins.")
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Wanted: so many times as fast as dense; the one that loses least wins.")
    ] = None,
    max_kv: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Largest share of the visual tokens in the KV cache, such as 30%."),
    ] = None,
    speed: Annotated[str, typer.Option(help="Time that counts: 'total', of the answer, or 'prefill'.")] = "total",
    confidence: Annotated[float, typer.Option(help="One-sided confidence of the loss's upper bound.")] = 0.95,
    methods: Annotated[
        str,
        typer.Option(help="Methods, comma-separated, as for `foveate eval`; `all` are those that need no weights."),
    ] = "fastv,greedyprune,divprune,btp,pyramiddrop,random",
    keep: Keeps = "0.5,0.33,0.22,0.11",
    layers: Annotated[
        str | None,
        typer.Option(
            help="Stages of methods with one cut, comma-separated; by default their own, a quarter, and half."
        ),
    ] = None,
    calibrate: Annotated[
        int, typer.Option(min=0, help="Questions for BTP's calibration, one move of the search; 0 leaves it out.")
    ] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for questions and draws.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of the last settings.")] = 7,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered, and timed, at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    json_file: JsonFile = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Search methods, budgets and stages: the fastest that loses little enough, or the best that is fast enough."""
    from foveate.errors import BudgetError
    from foveate.learn.tune.run import JOURNAL, RESULT, TuneSettings, own_questions, result_table, suite_questions
    from foveate.learn.tune.run import tune as run
    from foveate.learn.tune.search import Goal
    from foveate.measure.bench.settings import whole_numbers
    from foveate.measure.eval.arms import plan_arms
    from foveate.measure.eval.data.questions import data_settings
    from foveate.measure.eval.metrics import check_mode, parse_metrics
    from foveate.measure.eval.suites import suite_named
    from foveate.measure.loading import check_place, load_model
    from foveate.pruners.budget import parse_keeps
    from foveate.pruners.spec import parse_methods

    # 1. options
    check_data(context, data, json_file, instead=("suite",))
    not_among((JOURNAL, RESULT), out, json_file)
    goal: Any = Goal(
        max_loss=None if max_loss is None else share_of("--max-loss", max_loss),
        min_speedup=min_speedup,
        max_kv=None if max_kv is None else share_of("--max-kv", max_kv),
        speed=speed,  # type: ignore[arg-type]
        confidence=confidence,
    )
    settings = TuneSettings(
        goal=goal,
        methods=tuple(parse_methods(_all_methods() if methods == "all" else methods)),
        keeps=parse_keeps(keep),
        layers=None if layers is None else whole_numbers("layers", layers),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        rounds=rounds,
        seed=seed,
    )
    own = data_settings(
        data, samples=samples, fields=tuple(field or ()), question=question, split=split, bad_rows=bad_rows
    )
    metrics = parse_metrics(metric or ())
    check_mode("generate", metrics, own is not None)
    suite_named(suite)
    plan_arms(settings.methods, settings.keeps, None, oracle=False)
    if not all(0 <= layer < MOST_LAYERS for layer in settings.layers or ()):
        raise BudgetError(f"--layers are decoder layers, numbered from 0, got {layers}")
    check_place(device, dtype)
    # 2. look through the data, load, and search
    with progress() as bar:
        task = bar.add_task("preparing", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        if own is None:
            asked = suite_questions(suite, samples or 200, seed, calibrate, advance)
        else:
            asked = own_questions(own, metrics, seed, out, calibrate, advance)
        bar.reset(task, description=f"loading {model}", total=None)
        quiet_loading()
        loaded = load_model(model, device, dtype)
        try:
            result = run(loaded, asked, settings, out, fresh, advance)
        except KeyboardInterrupt:
            complain(f"stopped; what was answered is in {out}, and the same command continues there")
            raise typer.Exit(130) from None
    # 3. show
    table = result_table(result)
    show_table(table.title, table.columns, table.rows, 2)
    _say_notes(result, out / RESULT)
    if result["winner"] is None:
        warn(f"NOTHING BEATS DENSE: {result['why']}")
    else:
        folder = str(out / result["winner"]["folder"])
        say(f"winner: {result['winner']['setting']}; foveate.load({folder!r})")
    if json_file:
        write_json(json_file, result)


def _say_notes(result: dict[str, Any], file: Path) -> None:
    level, last = 100 * result["goal"]["confidence"], sum(one["out"] is None for one in result["trials"])
    say(
        f"'At most' is the upper bound of the loss, {level:g} % for the {last} that were asked everything; the "
        f"controls have one of their own. Settings that were left on the way, with why: {file}"
    )
    for line in result["left_out"]:
        say(f"left out: {line}")


def share_of(option: str, text: str) -> float:
    """Return `1%` or `0.01` as a share.

    Raises
    ------
    TuneError
        It is neither.
    """
    from foveate.learn.tune.search import TuneError

    written = text.strip()
    try:
        number = float(written.removesuffix("%"))
    except ValueError:
        raise TuneError(f"{option} is a share such as 1% or 0.01, got '{text}'") from None
    return number / 100 if written.endswith("%") else number


def _all_methods() -> str:
    from foveate.pruners import METHODS

    return ",".join(name for name, method in METHODS.items() if not method.needs)
