"""Train the embedded model from a seed: scenes, stage A (vision) on patch labels, stage B (language) on questions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch

from foveate.tiny.model import build
from foveate.tiny.training.language_stage import (
    LanguageBatches,
    answer_loss,
    cache_tokens,
    check_language,
    evidence_loss,
    freeze_label_words,
    gather,
    run_layers,
    to_device,
)
from foveate.tiny.training.optimisers import FAST, optimisers, set_rate
from foveate.tiny.training.plot import plot_log
from foveate.tiny.training.pool import Pool, render_pool
from foveate.tiny.training.run import Recipe, Run, Threads
from foveate.tiny.training.vision_stage import (
    PatchHeads,
    VisionBatches,
    amplify_texture,
    presence,
    principal_patches,
    see,
    start_tower,
    to_pixels,
)
from foveate.tiny.vocabulary import processor
from foveate.torch_state import own_randomness
from foveate.torch_state import threads as with_threads

Progress = Callable[[str, int, int, str], None]


@torch.no_grad()
def check_vision(model: torch.nn.Module, heads: PatchHeads, pool: Pool, device: torch.device) -> dict[str, float]:
    """The stage A figures on held-out scenes."""
    totals: dict[str, list[float]] = {}
    words = model.model.language_model.embed_tokens.weight
    seen = torch.from_numpy(presence(pool.objects)).to(device)
    for i in range(0, min(len(pool), 256), 64):
        pixels = to_pixels(pool.images[i : i + 64], device)
        labels = torch.from_numpy(pool.labels[i : i + 64]).long().to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=FAST is torch.bfloat16):
            _, logs = heads(*see(model, pixels), words, pixels, labels, seen[i : i + 64])
        for name, value in logs.items():
            totals.setdefault(name, []).append(float(value))
    return {f"held_out_{name}": sum(values) / len(values) for name, values in totals.items()}


def train_vision(
    run: Run, pool: Pool, held_out: Pool, threads: int | None = None, progress: Progress | None = None
) -> tuple[torch.nn.Module, PatchHeads]:
    """Stage A; picks up at the last checkpoint of the run folder.

    Parameters
    ----------
    run
    pool, held_out
        Scenes to train on and to check with.
    threads
        Fixed number of threads; by default one or two, whichever is quicker.
    progress
        Called with stage, step, steps and a short text.
    """
    recipe, device = run.recipe, run.device
    torch.manual_seed(recipe.seed)
    basis = principal_patches(pool.images[: min(400, len(pool))])
    model = build()
    start_tower(model, *basis[1:])
    heads = PatchHeads(model.config.text_config.hidden_size, *basis)
    model.to(device)
    heads.to(device)
    tower = [
        *model.model.vision_tower.named_parameters(),
        *model.model.multi_modal_projector.named_parameters("projector"),
    ]
    opts = optimisers(chain(tower, heads.named_parameters()), recipe.muon_vision, recipe.adam_vision)
    step = run.restore("vision", [model, heads], opts)
    words = model.model.language_model.embed_tokens.weight.detach()
    batches = VisionBatches(pool, recipe.batch_vision, recipe.seed, recipe.signs_from, device)
    pace = Threads(threads)
    means: dict[str, float] = {}
    while step < recipe.steps_vision:
        pace.begin()
        set_rate(opts, step, recipe.steps_vision, recipe.decay_vision)
        pixels, labels, present = batches(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=FAST is torch.bfloat16):
            digit_weight = 2.5 if step >= recipe.signs_from else 1.5
            loss, logs = heads(*see(model, pixels), words, pixels, labels, present, digit_weight)
        loss.backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
        pace.end()
        step += 1
        for name, value in (*logs.items(), ("loss", loss)):
            value = float(value.detach())
            means[name] = means.get(name, value) if value != value else 0.95 * means.get(name, value) + 0.05 * value
        if step % 50 == 0 or step == recipe.steps_vision:
            extra = check_vision(model, heads, held_out, device) if step % 500 == 0 else {}
            run.log(stage="vision", step=step, threads=torch.get_num_threads(), **means, **extra)
        if progress:
            progress("vision", step, recipe.steps_vision, f"loss {means['loss']:.2f}")
        if run.due() or step == recipe.steps_vision:
            run.save("vision", step, [model, heads], opts)
    return model, heads


def train_language(
    run: Run,
    model: torch.nn.Module,
    pool: Pool,
    cache: torch.Tensor,
    held_out: Pool,
    held_out_cache: torch.Tensor,
    threads: int | None = None,
    progress: Progress | None = None,
) -> torch.nn.Module:
    """Stage B on cached visual tokens; picks up at the last checkpoint of the run folder.

    Parameters
    ----------
    run
    model
        From stage A.
    pool, held_out
        Scenes to train on and to check with.
    cache, held_out_cache
        Their visual tokens, see `cache_tokens`.
    threads, progress
        As in `train_vision`.
    """
    recipe, device = run.recipe, run.device
    torch.manual_seed(recipe.seed + 1)
    freeze_label_words(model)
    language = model.model.language_model
    opts = optimisers(language.named_parameters(), recipe.muon_language, recipe.adam_language)
    steps = recipe.steps_language
    step = run.restore("language", [language], opts)
    batches = LanguageBatches(pool, recipe.batch_language, recipe.seed, steps)
    pace = Threads(threads)
    means: dict[str, float] = {}
    while step < steps:
        pace.begin()
        set_rate(opts, step, steps, recipe.decay_language)
        chosen, packed = batches(step)
        inputs = to_device(gather(cache, chosen, packed), packed, device)
        logits, led = run_layers(model, *inputs)
        loss = answer_loss(logits, torch.from_numpy(packed.targets).to(device))
        means["answer"] = 0.97 * means.get("answer", float(loss.detach())) + 0.03 * float(loss.detach())
        weight = recipe.evidence_weight * max(0.0, 1 - step / (recipe.evidence_until * steps))
        if weight > 0:
            seen = evidence_loss(model, led, *inputs[2:], packed)
            means["evidence"] = 0.97 * means.get("evidence", float(seen.detach())) + 0.03 * float(seen.detach())
            loss = loss + weight * seen
        loss.backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
        pace.end()
        step += 1
        if step % 50 == 0 or step == steps:
            due = step % recipe.check_every == 0 or step == steps
            extra = check_language(model, held_out_cache, held_out, device) if due else {}
            count = len(packed.tasks) / len(chosen)
            run.log(stage="language", step=step, threads=torch.get_num_threads(), per_scene=count, **means, **extra)
        if progress:
            progress("language", step, steps, f"loss {means['answer']:.3f}")
        if run.due() or step == steps:
            run.save("language", step, [language], opts)
    return model


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


@with_threads(None)
@own_randomness()
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
