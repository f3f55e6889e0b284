"""Train the embedded model from a seed: scenes, stage A (vision) on patch labels, stage B (language) on questions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from foveate.tiny.scenes import POOL_CHECK_STREAM
from foveate.tiny.training.language_stage import cache_tokens, train_language
from foveate.tiny.training.plot import plot_log
from foveate.tiny.training.pool import render_pool
from foveate.tiny.training.recipe import Recipe
from foveate.tiny.training.run import Run
from foveate.tiny.training.small_pictures import SmallBatches, small_pictures
from foveate.tiny.training.vision_stage import Progress, amplify_texture, train_vision
from foveate.tiny.vocabulary import processor
from foveate.torch_state import own_randomness
from foveate.torch_state import threads as with_threads

__all__ = ["Recipe", "export", "train"]


def export(model: torch.nn.Module, folder: Path) -> None:
    """Write float16 weights, configs, processor and tokenizer, all that `from_pretrained` wants."""
    model.cpu().half().save_pretrained(folder)
    processor(model.config.vision_config.image_size).save_pretrained(folder)
    model.float()


def train(
    folder: str | Path,
    recipe: Recipe | None = None,
    resume: bool = False,
    threads: int = 1,
    checkpoint_seconds: float = 180.0,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Path:
    """Train from scratch or continue where a run stopped.

    Parameters
    ----------
    folder
        Run folder: scenes (4.7 GB with the defaults), their visual tokens (2.4 GB), checkpoints, `log.jsonl`,
        `curve.png` and, at the end, `weights`.
    recipe
        By default the one of the shipped weights.
    resume
        Go on from the checkpoints in `folder`. Each step depends on the seed and its number alone, so a resumed run
        sees the same data as one that never stopped.
    threads
        Sums in another order give slightly other weights, so a run keeps to one number of threads.
    checkpoint_seconds
        Time between checkpoints.
    progress
        Called with the stage, the step, the steps and a short text.
    device
        That the two models are trained on; a run keeps to one.

    Returns
    -------
    Path
        The folder of the weights.

    Raises
    ------
    FileExistsError
        `folder` holds a run, and `resume` was not asked for.
    ValueError
        `folder` holds a run with another recipe.
    """
    folder, recipe = Path(folder), recipe or Recipe()
    if not resume and any((folder / name).exists() for name in ("vision.pt", "language.pt", "log.jsonl")):
        raise FileExistsError(f"{folder} holds a run already; resume it or choose another folder")
    with with_threads(threads), own_randomness():
        run = Run(folder, recipe, checkpoint_seconds, device)
        run.log(stage="start", threads=threads, torch=torch.__version__, recipe=asdict(recipe))
        held_out = render_pool(
            folder / "held_out", recipe.held_out_scenes, recipe.seed, POOL_CHECK_STREAM, side=recipe.side
        )

        def rendered(count: int) -> None:
            if progress:
                progress("scenes", count, recipe.scenes, "")

        pool = render_pool(folder / "scenes", recipe.scenes, recipe.seed, progress=rendered, side=recipe.side)
        model = train_vision(run, pool, held_out, progress)
        amplify_texture(model, recipe.texture_gain)
        tokens = [cache_tokens(model, p, folder / f"{name}.pt") for name, p in (("tokens", pool), ("held", held_out))]
        small = SmallBatches(recipe, small_pictures(model, pool, recipe, folder / "small.pt"))
        train_language(run, model, pool, tokens[0], held_out, tokens[1], small, progress)
        export(model, folder / "weights")
        plot_log(folder / "log.jsonl", folder / "curve.png")
    return folder / "weights"
