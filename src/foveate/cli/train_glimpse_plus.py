"""`foveate train glimpse-plus`: fine-tune a model with pruned visual context."""

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli.console import complain, progress, quiet_loading, say, write_json
from foveate.cli.options import Device, JsonFile


def glimpse_plus(
    config: Annotated[Path, typer.Argument(help="YAML or JSON: `model: …`, `data: …`; see the docs for the rest.")],
    out: Annotated[Path, typer.Option(help="Gets adapter, merged model, predictor; a stopped run goes on there.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of going on.")] = False,
    json_file: JsonFile = None,
    device: Device = "auto",
) -> None:
    """Fine-tune by GRPO on pruned context, merge, train a predictor. Runs under `accelerate launch`, too."""
    from foveate.learn.glimpse_plus.config import read_settings
    from foveate.learn.glimpse_plus.setup import load_samples
    from foveate.learn.glimpse_plus.stages import ADAPTER, MODEL, PREDICTOR, STEPS, need_trl
    from foveate.learn.glimpse_plus.train import train_plus
    from foveate.learn.processes import current

    settings = read_settings(config)
    need_trl()
    processes = current()
    quiet_loading()
    with progress() as bar:
        bar.disable = bar.disable or not processes.main
        task = bar.add_task("preparing", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        samples, held_out = load_samples(settings, advance)
        try:
            result = train_plus(settings, samples, held_out, out, fresh, device, advance, processes)
        except KeyboardInterrupt:
            complain(f"stopped; the checkpoints are in {out}, and the same command goes on there")
            raise typer.Exit(130) from None
    if processes.main:
        _show(result, {"adapter": out / ADAPTER, "figures": out / ADAPTER / STEPS, "model": out / MODEL})
        if "predictor" in result["done"]:
            say(f"predictor: {out / PREDICTOR}")
        if json_file:
            write_json(json_file, result)


def _show(result: dict[str, Any], files: dict[str, Path]) -> None:
    done = result["done"]["rl"]
    if done["left_out"]:
        say(f"left out: {done['left_out']} samples with longer prompts than max_prompt")
    if "seconds_per_step" in done:
        memory = f", at most {done['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in done else ""
        say(f"{done['steps']} steps of {done['seconds_per_step']:.1f} s{memory}")
    for name, path in files.items():
        say(f"{name}: {path}")
