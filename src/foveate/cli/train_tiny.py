"""`foveate train tiny`: make the embedded model again, from a seed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli.console import progress, quiet_loading, say, show_table
from foveate.errors import FoveateError


def run(
    out: Annotated[Path, typer.Option(help="Run folder: scenes, checkpoints, log, curve and weights.")],
    seed: Annotated[int, typer.Option(help="Decides scenes, questions and starting weights.")] = 0,
    steps_vision: Annotated[int | None, typer.Option(min=1, help="Steps of stage A; default: the shipped.")] = None,
    steps_language: Annotated[int | None, typer.Option(min=1, help="Steps of stage B; default: the shipped.")] = None,
    scenes: Annotated[int | None, typer.Option(min=50, help="Training scenes; default: the shipped.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one or two, whichever is quicker.")] = None,
    questions: Annotated[int, typer.Option(min=0, help="Held-out questions of the closing check; 0: no check.")] = 900,
) -> None:
    """Train the embedded model and check it against what it is wanted for."""
    from foveate.tiny.training.run import Recipe
    from foveate.tiny.training.train import train

    quiet_loading()
    asked = {"scenes": scenes, "steps_vision": steps_vision, "steps_language": steps_language}
    recipe = Recipe(seed=seed, **{name: value for name, value in asked.items() if value is not None})
    bars: dict[str, Any] = {}
    with progress() as display:

        def show(stage: str, done: int, total: int, text: str) -> None:
            if stage not in bars:
                bars[stage] = display.add_task(stage, total=total)
            display.update(bars[stage], completed=done, description=f"{stage} {text}".strip())

        try:
            weights = train(out, recipe, device=device, resume=resume, threads=threads, progress=show)
        except (FileExistsError, ValueError) as error:
            raise FoveateError(str(error)) from error
    say(f"weights: {weights}")
    if questions:
        _check(weights, out / "check.json", questions)


def _check(weights: Path, path: Path, questions: int) -> None:
    """Measure the new weights, print the table, write it."""
    from transformers import LlavaForConditionalGeneration

    from foveate.families import load_processor
    from foveate.tiny.training.check import check, verdict, write

    model = LlavaForConditionalGeneration.from_pretrained(weights).float().eval()
    table = check(model, load_processor(weights), questions)
    write(path, table, f"foveate train tiny --out {weights.parent}", questions, 1)
    rows = [[what, f"{figure:.1f}", wanted, "yes" if met else "no"] for what, figure, wanted, met in verdict(table)]
    show_table("What the model is wanted for, in %", ["what", "figure", "wanted", "met"], rows)
    say(f"figures: {path}")
