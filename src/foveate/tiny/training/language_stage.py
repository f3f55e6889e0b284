"""Stage B: the language model learns to answer, on the frozen tower's cached tokens.

The top layers learn first, alone; the layers below them begin as the identity and join later (`grow_at`). So what is
read from the image is read late, as in large models, though no mask forbids to read it earlier. No loss says where
attention goes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from foveate.tiny.questions import LONG_TASKS, SHORT_TASKS, TASKS, Question
from foveate.tiny.training.optimisers import FAST, optimisers
from foveate.tiny.training.packing import (
    FEW_OBJECTS,
    LAYOUT,
    NO_TARGET,
    Packed,
    logits_at,
    pack,
    positions,
    run_layers,
)
from foveate.tiny.training.pool import Pool
from foveate.tiny.training.recipe import Recipe
from foveate.tiny.training.run import Run
from foveate.tiny.training.vision_stage import LABEL_IDS, Progress, see, to_pixels


@dataclass(frozen=True)
class Phase:
    """A part of stage B: up to which step, how many objects a scene may have, how many visual tokens are shown."""

    until: int
    most_objects: int
    visual: int


def phase_at(recipe: Recipe, step: int) -> Phase:
    """The phase that a step belongs to; the last one has no end."""
    phases = [Phase(*values) for values in recipe.phases]
    return next((phase for phase in phases if step < phase.until), phases[-1])


@torch.no_grad()
def cache_tokens(model: nn.Module, pool: Pool, path: Path) -> torch.Tensor:
    """Projected visual tokens of all scenes of a pool, bfloat16 (N, tokens, D), kept in `path`."""
    if not path.is_file():
        place = next(model.parameters()).device
        images = (to_pixels(pool.images[i : i + 32]).to(place) for i in range(0, len(pool), 32))
        parts = [see(model, some)[0].bfloat16().cpu() for some in images]
        torch.save(torch.cat(parts), path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return torch.load(path, weights_only=True, mmap=True)


@torch.no_grad()
def start_layers(model: nn.Module, identity: int) -> None:
    """Weights to begin stage B with: attention and MLP of the first `identity` layers add nothing at first."""
    for layer in model.model.language_model.layers[:identity]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


class Batches:
    """Batches of stage B by step number; scenes and questions depend on the seed and the step alone.

    Scenes with signs to read digit by digit or to spell, or with arrows, come `recipe.signs_weight` times as often.
    """

    def __init__(self, recipe: Recipe, pool: Pool):
        self.recipe, self.pool = recipe, pool
        self.sizes = np.array([len(objects) for objects in pool.objects])
        signs = np.array([any(len(t.text) > 2 or t.arrow for t in objects) for objects in pool.objects])
        self.weight = np.where(signs, recipe.signs_weight, 1.0)

    def __call__(self, step: int) -> tuple[np.ndarray, Packed]:
        """Scene numbers (B,) and packed questions of a step."""
        rng = np.random.default_rng([7, self.recipe.seed, step])
        phase = phase_at(self.recipe, step)
        members = np.flatnonzero((self.sizes <= phase.most_objects) & (self.sizes > 0))
        chance = self.weight[members] / self.weight[members].sum()
        chosen = rng.choice(members, min(self.recipe.batch_language, len(members)), replace=False, p=chance)
        layout = FEW_OBJECTS if phase.most_objects < 4 else LAYOUT
        return chosen, pack(rng, self.pool, chosen, phase.visual, layout)


def gather(cache: torch.Tensor, chosen: np.ndarray, keep: np.ndarray) -> torch.Tensor:
    """The cached tokens that are shown, (B, V, D)."""
    rows = cache[torch.from_numpy(chosen)].to(FAST)
    if keep.shape[1] == rows.shape[1]:
        return rows
    return rows.gather(1, torch.from_numpy(keep)[..., None].expand(-1, -1, rows.shape[2]))


def as_tensors(
    cache: torch.Tensor, chosen: np.ndarray, packed: Packed, pool: Pool, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `run_layers` takes of a batch, on a device: visual tokens, text and positions."""
    where = positions(torch.from_numpy(packed.keep), packed.layout, pool.grid**2)
    return gather(cache, chosen, packed.keep).to(device), torch.from_numpy(packed.ids).to(device), where.to(device)


def judged(
    model: nn.Module, hidden: torch.Tensor, packed: Packed
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[Question, bool]]]:
    """Logits of the answers' tokens, which text positions they are at, and which questions are answered exactly."""
    targets = torch.from_numpy(packed.targets).to(hidden.device)
    asked = targets != NO_TARGET
    logits = logits_at(model, hidden, asked)
    good = torch.ones_like(asked)
    good[asked] = logits.detach().argmax(-1) == targets[asked]
    good = good.cpu()
    return logits, asked, [(question, bool(good[b, first:last].all())) for b, first, last, question in packed.asked]


def answer_loss(
    model: nn.Module, hidden: torch.Tensor, packed: Packed
) -> tuple[torch.Tensor, list[tuple[Question, bool]]]:
    """Weighted cross entropy of the answers, and which questions are answered exactly."""
    logits, asked, right = judged(model, hidden, packed)
    targets, weights = (torch.from_numpy(v).to(hidden.device)[asked] for v in (packed.targets, packed.weights()))
    each = F.cross_entropy(logits, targets, reduction="none")
    return (each * weights).sum() / weights.sum(), right


def short_and_long(right: list[tuple[Question, bool]]) -> dict[str, float]:
    """Share of short and of long answers that are right, in per cent."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for question, good in right:
        groups["train_long" if question.task in LONG_TASKS else "train_short"].append(good)
    return {name: 100 * float(np.mean(values)) for name, values in groups.items()}


@torch.no_grad()
def answered(model: nn.Module, cache: torch.Tensor, pool: Pool, first_layer: int, scenes: int) -> dict:
    """Share of held-out questions answered exactly (every token and the end), per task, and the means; in per cent."""
    place = next(model.parameters()).device
    right: dict[str, list[bool]] = defaultdict(list)
    for first in range(0, min(scenes, len(pool)), 16):
        chosen = np.arange(first, min(first + 16, scenes, len(pool)))
        packed = pack(np.random.default_rng([123, first]), pool, chosen, shares={})
        tokens, ids, where = as_tensors(cache, chosen, packed, pool, place)
        hidden = run_layers(model, tokens, ids, where, packed.layout, first_layer)
        for question, good in judged(model, hidden, packed)[2]:
            right[question.task].append(good)
    out = {task: 100 * float(np.mean(right[task])) for task in TASKS if right[task]}
    for name, tasks in (("short", SHORT_TASKS), ("long", LONG_TASKS)):
        values = [out[task] for task in tasks if task in out]
        if values:
            out[name] = float(np.mean(values))
    return out


def _set_rates(opts: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    """Warm up, stay, fall linearly to 1 % from `decay_from` on; the layers that join later warm up when they do."""
    left = (recipe.steps_language - step) / max(1, recipe.steps_language - recipe.decay_from)
    factor = min(1.0, (step + 1) / 100) * min(1.0, max(0.01, left))
    for opt in opts:
        for group in opt.param_groups:
            joined = min(1.0, max(0.0, (step + 1 - recipe.grow_at) / 200)) if group["late"] else 1.0
            group["lr"] = group["peak"] * factor * joined


def _optimisers(language: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Two groups each: the layers that begin as the identity apart from the rest."""
    out = []
    late = tuple(f"layers.{n}." for n in range(recipe.shape.layers - recipe.top_layers))
    for joins in (False, True):
        named = [(n, p) for n, p in language.named_parameters() if n.startswith(late) == joins]
        if not named:
            continue
        opts = optimisers(named, recipe.muon_language, recipe.adam_language)
        for opt in opts:
            for group in opt.param_groups:
                group["late"] = joins
        out += opts
    return out


def _small_step(
    model: nn.Module, tokens: torch.Tensor, packed: Packed, grid: int, first_layer: int, weight: float
) -> float:
    """Add the gradients of a batch of small pictures; its loss."""
    place = next(model.parameters()).device
    where = positions(torch.from_numpy(packed.keep), packed.layout, grid**2).to(place)
    ids = torch.from_numpy(packed.ids).to(place)
    hidden = run_layers(model, tokens.to(place), ids, where, packed.layout, first_layer)
    loss, _ = answer_loss(model, hidden, packed)
    (weight * loss).backward()
    return float(loss.detach())


def train_language(
    run: Run,
    model: nn.Module,
    pool: Pool,
    cache: torch.Tensor,
    held_out: Pool,
    held_cache: torch.Tensor,
    small: Callable[[int], tuple[torch.Tensor, Packed] | None],
    progress: Progress | None = None,
) -> nn.Module:
    """Stage B on cached visual tokens; continues from the last checkpoint of the run folder.

    `small` gives the small pictures of a step, see `SmallBatches`.
    """
    recipe = run.recipe
    torch.manual_seed(recipe.seed + 1)
    model = model.to(run.device)
    language = model.model.language_model
    embedding, fixed = language.embed_tokens.weight, torch.cat(LABEL_IDS).to(run.device)
    # The words that stage A aligned the visual tokens with stay where they are.
    embedding.register_hook(lambda grad: grad.index_fill(0, fixed, 0.0))
    start_layers(model, recipe.shape.layers - recipe.top_layers)
    opts = _optimisers(language, recipe)
    step = run.restore("language", [language], opts)
    batches = Batches(recipe, pool)
    means: dict[str, float] = {}
    clock, questions = time.time(), 0
    while step < recipe.steps_language:
        _set_rates(opts, recipe, step)
        first_layer = 0 if step >= recipe.grow_at else recipe.shape.layers - recipe.top_layers
        chosen, packed = batches(step)
        tokens, ids, where = as_tensors(cache, chosen, packed, pool, run.device)
        hidden = run_layers(model, tokens, ids, where, packed.layout, first_layer)
        loss, right = answer_loss(model, hidden, packed)
        loss.backward()
        share = {"answer": float(loss.detach()), **short_and_long(right)}
        more = small(step)
        if more and more[1].asked:
            share["small"] = _small_step(model, *more, pool.grid, first_layer, recipe.small_weight)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step += 1
        questions += len(packed.asked)
        for name, value in share.items():
            means[name] = 0.96 * means.get(name, value) + 0.04 * value
        if step % 25 == 0 or step == recipe.steps_language:
            due = step % recipe.check_every == 0 or step == recipe.steps_language
            extra = answered(model, held_cache, held_out, first_layer, recipe.check_scenes) if due else {}
            spent, clock = (time.time() - clock) / 25, time.time()
            run.log(
                stage="language",
                step=step,
                first_layer=first_layer,
                per_step=spent,
                per_scene=questions / 25 / recipe.batch_language,
                **means,
                **extra,
            )
            questions = 0
        if progress:
            progress("language", step, recipe.steps_language, f"loss {means['answer']:.3f}")
        if run.due() or step == recipe.steps_language:
            run.save("language", step, [language], opts)
    return model
