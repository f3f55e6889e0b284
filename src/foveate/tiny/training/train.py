"""Train the embedded model from a seed: scenes, stage A (vision), stage B (language), weights."""

from __future__ import annotations

from pathlib import Path

import torch

from foveate.tiny.training.language_stage import cache_tokens
from foveate.tiny.training.plot import plot_log
from foveate.tiny.training.pool import Pool, render_pool
from foveate.tiny.training.run import Recipe, Run
from foveate.tiny.training.stages import Progress, train_language, train_vision
from foveate.tiny.training.vision_stage import amplify_texture
from foveate.tiny.vocabulary import processor

__all__ = ["Recipe", "export", "train"]


def export(model: torch.nn.Module, folder: Path) -> None:
    """Write float16 weights, configs, processor and tokenizer, all that `from_pretrained` wants."""
    model.half().save_pretrained(folder)
    processor().save_pretrained(folder)
    model.float()


def _pools(run: Run, progress: Progress | None) -> tuple[Pool, Pool]:
    recipe = run.recipe

    def rendered(count: int) -> None:
        if progress:
            progress("scenes", count, recipe.scenes, "")

    held_out = render_pool(run.folder / "held_out", recipe.held_out_scenes, recipe.seed, held_out=True)
    return render_pool(run.folder / "scenes", recipe.scenes, recipe.seed, progress=rendered), held_out


def train(
    folder: str | Path,
    recipe: Recipe | None = None,
    device: str | torch.device = "cpu",
    resume: bool = False,
    threads: int | None = None,
    checkpoint_seconds: float = 180.0,
    progress: Progress | None = None,
) -> Path:
    """Train from scratch or continue where a run stopped.

    Parameters
    ----------
    folder
        Run folder: scenes (3.6 GB with the defaults), checkpoints, `log.jsonl`, `curve.png` and `weights`.
    recipe
        By default the one of the shipped weights.
    device
    resume
        Go on from the checkpoints in `folder`. Each step depends on the seed and its number alone, so a resumed run
        sees the same data as one that never stopped.
    threads
        Fixed number of threads; by default one or two, whichever is quicker. Sums in another order give slightly
        other weights, so fix it where two runs must agree to the bit.
    checkpoint_seconds
        Time between checkpoints.
    progress
        Called with stage, step, steps and a short text.

    Returns
    -------
    Path
        The folder of the weights.
    """
    folder, recipe = Path(folder), recipe or Recipe()
    if threads:
        torch.set_num_threads(threads)  # from the first weights on: a run that is gone on with does not make them anew
    if not resume and any((folder / name).exists() for name in ("vision.pt", "language.pt", "log.jsonl")):
        raise FileExistsError(f"{folder} holds a run already; resume it or choose another folder")
    run = Run(folder, recipe, torch.device(device), checkpoint_seconds)
    pool, held_out = _pools(run, progress)
    model, _ = train_vision(run, pool, held_out, threads, progress)
    amplify_texture(model, recipe.texture_gain)
    cache = cache_tokens(model, pool, folder / "tokens.pt", run.device)
    train_language(
        run, model, pool, cache, held_out, cache_tokens(model, held_out, None, run.device), threads, progress
    )
    export(model, folder / "weights")
    plot_log(folder / "log.jsonl", folder / "curve.png")
    return folder / "weights"
