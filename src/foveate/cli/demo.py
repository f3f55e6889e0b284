"""`foveate demo`: the embedded model with all and with a quarter of its visual tokens, or a page; no network."""

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli.console import (
    WRONG,
    Budget,
    Device,
    DType,
    Keep,
    Method,
    MethodOptions,
    console,
    quiet_loading,
    say,
    show_table,
    warn,
)
from foveate.cli.outputs import JsonFile, file_option, write_json, written
from foveate.errors import FoveateError

USUAL = 0.25  # budget where nothing says another
SHIPPED = "glimpseprune-tiny"
NEXT = "To try your own model: foveate run --model MODEL --image photo.jpg --prompt 'What is this?' --overlay kept.png"


# options, by parameter, that mean something only with --page, and only without it
OF_PAGE = {"model": "--model", "host": "--host", "port": "--port", "device": "--device", "dtype": "--dtype"}
OF_TABLES = {
    "budget": "--budget",
    "option": "--option",
    "questions": "--questions",
    "picture": "--picture",
    "json_file": "--json",
}


class DemoError(FoveateError, ValueError):
    """Options of the demo that do not go together."""


def demo(
    context: typer.Context,
    method: Method = "greedyprune",
    keep: Keep = None,
    budget: Budget = "after",
    option: MethodOptions = None,
    questions: Annotated[int, typer.Option(min=1, max=90, help="Number of questions.")] = 9,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for scenes and questions.")] = 1,
    picture: Annotated[Path, file_option("File for the image of the kept tokens.")] = Path("foveate-demo.png"),
    json_file: JsonFile = None,
    page: Annotated[
        bool, typer.Option("--page", help="Serve a page on which to ask questions about own images (extra demo).")
    ] = False,
    host: Annotated[str, typer.Option(help="With --page: address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --page: port; 0: a free one.")] = 7860,
    model: Annotated[str, typer.Option(help="With --page: a Hub id, a folder, or `tiny`.")] = "tiny",
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Answer questions about sample images, dense and pruned, on the embedded model; needs no network."""
    from foveate.cli.run import make_pruner, solved

    _check_given(context, page)
    if page:
        _page(model, device, dtype, method, keep, seed, host, port)
        return
    pruner = make_pruner(method, keep, option or [], USUAL, budget)
    with console(stderr=True).status("loading the embedded model"):
        from foveate.measure.compare import compare
        from foveate.measure.eval.suites import load_suite
        from foveate.measure.loading import TINY, load_model
        from foveate.measure.tables import cost_lines, time_note
        from foveate.pruners.spec import brief

        quiet_loading()
        loaded = load_model(TINY, device="cpu")
        examples = load_suite("scenes", questions, seed)
        pruner = solved(loaded, pruner, keep, USUAL, budget, examples[0].question, [examples[0].image])
    with console(stderr=True).status("answering, dense and pruned"):
        found = compare(loaded, examples, pruner)
    parameters = sum(weight.numel() for weight in loaded.model.parameters())
    say(
        f"This is foveate's embedded model: {parameters / 1e6:.1f} million parameters, trained on rendered scenes. "
        f"It shows that pruning works and what it costs; it says little about large models."
    )
    say(f"Dense beside {brief(pruner)}.\n")
    show_table("Answers", ["task", "question", "truth", "dense", "pruned", "tokens kept"], _answers(found), 5)
    say(f"right: dense {found.right(found.dense)} of {len(examples)}, pruned {found.right(found.pruned)}\n")
    if found.prefill.skipped:
        warn(f"nothing was pruned: {found.prefill.skipped}")
    else:
        for note in found.prefill.notes:
            warn(note)
        show_table("Cost and saving", ["", "dense", "pruned", "share"], cost_lines(found.prefill, found.timed))
        say(time_note(found.timed))
        with written(picture) as new:
            found.draw(new)
        say(f"Saved image of the kept tokens: {picture}\n")
    glance = _glimpse(loaded, seed, picture.with_stem(f"{picture.stem}-glimpse"))
    say(NEXT)
    if json_file:
        write_json(json_file, _json(found, pruner) | {"glimpse": glance.to_dict()})


def _check_given(context: typer.Context, page: bool) -> None:
    """Refuse options that the other kind of demo has."""
    for name, option in (OF_TABLES if page else OF_PAGE).items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise DemoError(f"{option} goes {'without' if page else 'with'} --page")


def need_gradio() -> None:
    """Refuse to go on without the package that the page is made with."""
    from foveate.cli.serve import MissingExtra

    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"{error.name} is not installed: pip install 'foveate[demo]'") from None


def _page(model: str, device: str, dtype: str, method: str, keep: str | None, seed: int, host: str, port: int) -> None:
    """Serve the page until it is interrupted."""
    from foveate.cli.run import make_pruner
    from foveate.pruners.budget import check_share, parse_keep
    from foveate.serve.settings import check_address

    share = USUAL if keep is None else check_share(parse_keep(keep))
    make_pruner(method, keep, [], USUAL)
    need_gradio()
    check_address(host, port)
    with console(stderr=True).status(f"loading {model}"):
        from foveate.measure.loading import load_model

        quiet_loading()
        loaded = load_model(model, device, dtype)
        from foveate.serve.page.answers import SideBySide
        from foveate.serve.page.app import build_app, listen, serve
    with listen(host, port) as listening, build_app(SideBySide(loaded), method, share, seed) as app:
        at = f"[{host}]" if ":" in host else host
        say(f"The page is at http://{at}:{listening.getsockname()[1]} until Ctrl-C.")
        serve(app, listening)


def _glimpse(loaded: Any, seed: int, picture: Path) -> Any:
    """Show how many tokens GlimpsePrune keeps for a question that needs few and for one that needs many."""
    from foveate import load
    from foveate.measure.compare import compare
    from foveate.measure.eval.suites import load_suite

    grounded = [one for one in load_suite("scenes", 90, seed) if _evidence(one) and one.answer != "no"]
    easy, cluttered = min(grounded, key=_evidence), max(grounded, key=_evidence)
    found = compare(loaded, [easy, cluttered], load(SHIPPED))
    columns = ["question", "dense", "pruned", "evidence", "tokens kept"]
    rows = [
        [one.question, dense, pruned, f"{_evidence(one)} tokens", f"{kept} of {of}"]
        for one, dense, pruned, (kept, of) in zip(
            found.examples, found.dense.texts, found.pruned.texts, found.kept(), strict=True
        )
    ]
    show_table(
        "GlimpsePrune, trained for this model: the number of kept tokens depends on the question", columns, rows, 3
    )
    with written(picture) as new:
        found.draw(new)
    say(f"Saved comparison image: {picture}\n")
    return found


def _evidence(example: Any) -> int:
    return 0 if example.evidence is None else len(example.evidence)


def _answers(found: Any) -> list[list[str]]:
    from foveate.measure.eval.suites import is_correct

    def marked(text: str, truth: str) -> str:
        return text if is_correct(text, truth) else f"{text or '(nothing)'} {WRONG}"

    return [
        [one.task, one.question, one.answer, marked(dense, one.answer), marked(pruned, one.answer), f"{kept} of {of}"]
        for one, dense, pruned, (kept, of) in zip(
            found.examples, found.dense.texts, found.pruned.texts, found.kept(), strict=True
        )
    ]


def _json(found: Any, pruner: Any) -> dict[str, Any]:
    from foveate.measure import environment

    return {
        "format": "foveate-demo-1",
        "model": "tiny",
        "pruner": repr(pruner),
        "versions": environment.versions(),
        "machine": environment.machine(found.loaded.model.device),
        **found.to_dict(),
    }
