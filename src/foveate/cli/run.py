"""`foveate run`: one answer of any model, what was kept for it, and an image of that."""

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli.console import (
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
from foveate.cli.outputs import JsonFile, file_option, spare, write_json, written

USUAL = 0.22  # budget where nothing says another


def run(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The question.")],
    image: Annotated[list[str] | None, typer.Option("--image", "-i", help="Image file or URL; repeatable.")] = None,
    model: Annotated[str, typer.Option(help="A Hub id, a folder, or `tiny`, the embedded model.")] = "tiny",
    method: Method = "greedyprune",
    keep: Keep = None,
    budget: Budget = "after",
    option: MethodOptions = None,
    overlay: Annotated[Path | None, file_option("Write an image of the kept tokens.")] = None,
    stage_errors: Annotated[
        bool,
        typer.Option("--stage-errors", help="Report the error that each cut causes in its layer and in the last one."),
    ] = False,
    json_file: JsonFile = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Answer one question with pruned visual tokens and report what was kept."""
    from foveate.measure.images import open_image

    pruner = make_pruner(method, keep, option or [], USUAL, budget)
    images = [open_image(source) for source in image or []]
    spare(image or [], overlay, json_file)
    with console(stderr=True).status(f"loading {model}"):
        from foveate.measure.eval.answers import run_batch
        from foveate.measure.loading import load_model

        quiet_loading()
        loaded = load_model(model, device, dtype)
    pruner = solved(loaded, pruner, keep, USUAL, budget, prompt, images)
    with console(stderr=True).status("answering"):
        batch = run_batch(loaded, [prompt], [images], pruner, max_new_tokens)
    say(batch.texts[0])
    console().print()
    drawn = _show(batch, loaded, images, overlay)
    errors = _errors(loaded, batch, pruner) if stage_errors else []
    if json_file:
        found = {
            "format": "foveate-run-1",
            "model": model,
            "prompt": prompt,
            "images": image or [],
            "pruner": repr(pruner),
            "answer": batch.texts[0],
        }
        found |= {"report": batch.report.to_dict(), "overlay": drawn}
        write_json(json_file, found | ({"stage_errors": errors} if stage_errors else {}))


def make_pruner(method: str, keep: str | None, options: list[str], usual: float, budget: str = "after") -> Any:
    """Return the pruner that a command's options describe; `usual` is the budget where nothing says another.

    With a budget of another meaning than "after" it is without one, until `solved` gives it.
    """
    from foveate.measure.budget import AFTER, check_budget
    from foveate.pruners.budget import parse_keep
    from foveate.pruners.spec import build, build_with, check_given_once, parse_options

    given, wanted = parse_options(options), None if keep is None else parse_keep(keep)
    check_budget(budget, [] if wanted is None else [wanted])
    if budget == AFTER:
        return build_with(method, given, wanted, usual)
    check_given_once(method, given, usual if wanted is None else wanted)
    return build(method, given)


def solved(
    loaded: Any, pruner: Any, keep: str | None, usual: float, budget: str, question: str, images: list[Any]
) -> Any:
    """Return the pruner with the budget that takes the wanted share of a prompt."""
    from foveate.measure.budget import AFTER, PromptCost
    from foveate.pruners.budget import parse_keep

    if budget == AFTER:
        return pruner
    cost = PromptCost.of_question(loaded, budget, question, images)
    return cost.solved(pruner, float(usual if keep is None else parse_keep(keep)))


def _show(batch: Any, loaded: Any, images: list[Any], overlay: Path | None) -> str | None:
    """Print what was kept, write the image, and return where it is."""
    from foveate.measure.tables import cost_lines, where

    prefill = batch.report.prefills[0]
    if prefill.skipped:
        warn(f"nothing was pruned: {prefill.skipped}")
    for note in prefill.notes:
        warn(note)
    if not prefill.stages:
        return None
    show_table("Cost and saving", ["", "dense", "pruned", "share"], cost_lines(prefill))
    if len(images) > 1:
        for stage in prefill.stages:
            parts = ", ".join(f"{kept} of {dense}" for kept, dense in stage.per_image[0])
            say(f"by image {where(stage.layer)}: {parts}")
    return _draw(prefill, loaded, batch.inputs, images, overlay) if overlay else None


def _errors(loaded: Any, batch: Any, pruner: Any) -> list[dict[str, Any]]:
    """Print the errors of each cut, and return them."""
    from dataclasses import asdict

    from foveate.measure.stage_errors import stage_errors
    from foveate.measure.tables import where

    found = stage_errors(loaded.model, pruner, batch.inputs)
    columns = ["cut", "its layer", "last layer", "its layer, cuts before too", "last layer, cuts before too"]
    rows = [
        [
            where(one.layer),
            *(f"{value:.3f}" for value in (one.local, one.global_, one.local_so_far, one.global_so_far)),
        ]
        for one in found
    ]
    show_table("Error of the last prompt token's hidden state, relative to dense", columns, rows)
    return [asdict(one) for one in found]


def _draw(prefill: Any, loaded: Any, inputs: Any, images: list[Any], overlay: Path) -> str | None:
    from foveate.measure.overlay import NoGridError, draw_overlay, image_grids, seen_image

    try:
        grids = image_grids(loaded.model.config, inputs)
    except NoGridError as error:
        warn(f"no image: {error}")
        return None
    seen = [seen_image(loaded.processor, inputs, at, one) for at, one in enumerate(images)]
    with written(overlay) as new:
        draw_overlay(seen, prefill.stages, grids, new)
    say(f"Saved image of the kept tokens: {overlay}")
    return str(overlay)
