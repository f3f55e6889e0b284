"""`python -m foveate.tiny.reading.train FOLDER`: scenes, stage A (vision), stage B (language), weights.

The same command continues where a run stopped, or begins with weights of an earlier one: `start.safetensors` in the
folder, which `--write-start` makes. A run folder keeps its recipe in `recipe.json`; each start writes the
recipe that it runs with to the log, so a change made on the way is on record.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from foveate.tiny.reading.language import cache_tokens, train_language
from foveate.tiny.reading.model import processor
from foveate.tiny.reading.pool import render_pool
from foveate.tiny.reading.recipe import ReadingRecipe
from foveate.tiny.reading.scenes import POOL_CHECK_STREAM
from foveate.tiny.reading.vision import train_vision
from foveate.tiny.training.run import Run
from foveate.tiny.training.vision_stage import amplify_texture
from foveate.torch_state import own_randomness
from foveate.torch_state import threads as with_threads

RECIPE, WEIGHTS = "recipe.json", "weights"


def read_recipe(folder: Path) -> ReadingRecipe:
    """The recipe of a run folder; the defaults where there is none yet."""
    path = folder / RECIPE
    if not path.is_file():
        return ReadingRecipe()
    values = json.loads(path.read_text())
    phases = tuple(tuple(phase) for phase in values["phases"])
    return ReadingRecipe(**{**values, "phases": phases, "led_layers": tuple(values["led_layers"])})


def export(model: torch.nn.Module, folder: Path) -> None:
    """Write float16 weights, configs, processor and tokenizer, all that `from_pretrained` wants."""
    model.half().save_pretrained(folder)
    processor().save_pretrained(folder)
    model.float()


def trained_model(run: Run) -> torch.nn.Module:
    """The model as the last checkpoints of a run folder have it; also of a run under way."""
    from foveate.tiny.reading.language import start_layers
    from foveate.tiny.reading.model import build

    recipe = run.recipe
    model = build(recipe)
    run.restore("vision", [model], [])
    amplify_texture(model, recipe.texture_gain)
    start_layers(model, recipe.layers - recipe.top_layers)
    run.restore("language", [model.model.language_model], [])
    return model.eval()


@with_threads(None)
@own_randomness()
def train(
    folder: Path, recipe: ReadingRecipe | None = None, threads: int = 1, checkpoint_seconds: float = 180.0
) -> Path:
    """Train from scratch or continue where a run stopped.

    Parameters
    ----------
    folder
        Run folder: scenes (4.7 GB with the defaults), their visual tokens (2.4 GB), checkpoints, `log.jsonl` and, at
        the end, `weights`.
    recipe
        By default that of the folder, or the one of the shipped weights in a new folder.
    threads
        Sums in another order give slightly other weights.
    checkpoint_seconds
        Time between checkpoints. Each step depends on the seed and its number alone, so a resumed run sees the same
        data as one that never stopped.

    Returns
    -------
    Path
        The folder of the weights.
    """
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe or read_recipe(folder)
    run = Run(folder, recipe, torch.device("cpu"), checkpoint_seconds)
    run.log(stage="start", threads=threads, torch=torch.__version__, recipe=asdict(recipe))
    held_out = render_pool(folder / "held_out", recipe.held_out_scenes, recipe.seed, POOL_CHECK_STREAM)
    pool = render_pool(folder / "scenes", recipe.scenes, recipe.seed)
    model = train_vision(run, pool, held_out)
    amplify_texture(model, recipe.texture_gain)
    tokens = [cache_tokens(model, p, folder / f"{name}.pt") for name, p in (("tokens", pool), ("held", held_out))]
    train_language(run, model, pool, tokens[0], held_out, tokens[1])
    export(model, folder / WEIGHTS)
    return folder / WEIGHTS


def main() -> None:
    """Train; a folder that holds a run is gone on with."""
    parser = argparse.ArgumentParser(prog="python -m foveate.tiny.reading.train", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-seconds", type=float, default=180.0)
    parser.add_argument(
        "--write-start", type=Path, help="write the weights so far for another folder, and train no more"
    )
    parser.add_argument("--stages", default="vision,language", help="with --write-start: those to write")
    asked = parser.parse_args()
    if asked.write_start:
        run = Run(asked.folder, read_recipe(asked.folder), torch.device("cpu"))
        run.write_start(asked.write_start, asked.stages.split(","))
        return
    train(asked.folder, threads=asked.threads, checkpoint_seconds=asked.checkpoint_seconds)


if __name__ == "__main__":
    main()
