"""The shipped language model is trained further: on clips, large images, two scenes and single ones.

The vision part stays as it is, so its tokens are cached, and so do the lowest layers. At first only some of the visual
tokens are shown, those of the objects among them, which makes a step about twice as fast; after that all are.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from foveate.tiny.model import as_changes, load
from foveate.tiny.training.language_stage import answer_loss, gather, judged
from foveate.tiny.training.optimisers import muon_of
from foveate.tiny.training.packing import SHARES, Packed, positions, run_layers
from foveate.tiny.training.run import Run
from foveate.tiny.training.several import KINDS, cached, packed
from foveate.tiny.training.vision_stage import Progress
from foveate.tiny.vocabulary import WORD_ID
from foveate.torch_state import own_randomness
from foveate.torch_state import threads as with_threads

# Words that no question about scenes uses: as answers that are never right they have all become alike.
_NEW_WORDS = ("after", "before", "enters", "frame", "it", "last", "leaves", "move", "still")
_SHARES = {**SHARES, "move": 1.3, "moving": 0.7, "order": 3.0}
Mixture = tuple[tuple[str, int, int, int], ...]
"""Kind, how many of it in a step, visual tokens shown, and that it comes in so many-th step."""


@dataclass(frozen=True)
class ManyRecipe:
    """The defaults are those of the shipped changes."""

    seed: int = 0
    drawn: tuple[tuple[str, int], ...] = (("clip", 1400), ("large", 600), ("pair", 400), ("single", 800))
    """How many of each kind are drawn."""
    first_layer: int = 3
    """The lowest layer that is changed."""
    rate: float = 0.008
    """Muon's, at its peak."""
    steps: int = 3600
    decay_from: int = 1200
    whole_from: int = 2000
    """The step from which on every image is whole."""
    parts: Mixture = (("clip", 2, 384, 1), ("large", 1, 320, 1), ("pair", 1, 512, 4), ("single", 1, 256, 2))
    whole: Mixture = (("clip", 1, 2048, 1), ("large", 1, 1024, 2), ("pair", 1, 512, 4), ("single", 1, 256, 2))
    check_every: int = 500
    check: tuple[tuple[str, int], ...] = (("clip", 24), ("large", 24), ("pair", 12), ("single", 12))

    def lasting(self, steps: int | None) -> ManyRecipe:
        """The same course in another number of steps."""
        part = (steps or self.steps) / self.steps
        course = {name: round(part * getattr(self, name)) for name in ("decay_from", "whole_from")}
        return replace(self, steps=steps or self.steps, **course)


def open_layers(model: nn.Module, first: int) -> dict[str, nn.Parameter]:
    """Draw the new words' embeddings, and leave only the linears of the layers from `first` on to be trained."""
    model.requires_grad_(False)
    language = model.model.language_model
    language.embed_tokens.weight[_new_words()] = 0.1 * torch.randn(
        len(_NEW_WORDS), model.config.text_config.hidden_size
    )
    out = {}
    for number, layer in enumerate(language.layers):
        for name, module in layer.named_modules():
            if number >= first and isinstance(module, nn.Linear):
                out[f"layers.{number}.{name}"] = module.weight.requires_grad_()
    return out


def _new_words() -> torch.Tensor:
    return torch.tensor([WORD_ID[word] for word in _NEW_WORDS])


@torch.no_grad()
def changes(model: nn.Module, trained: dict[str, nn.Parameter], before: nn.Module) -> dict[str, torch.Tensor]:
    """What `foveate.tiny.model.merge` takes, for a model and what it was before."""
    words = _new_words()
    out = {"words": words, "rows": model.model.language_model.embed_tokens.weight[words].half()}
    for name, weight in trained.items():
        change = as_changes(weight - before.model.language_model.get_submodule(name).weight)
        out |= {f"{name}.{part}": values for part, values in change.items()}
    return out


class _Data:
    """The things of each kind and their cached visual tokens."""

    def __init__(self, model: nn.Module, recipe: ManyRecipe, folder: Path, progress: Progress | None):
        self.recipe, self.of = recipe, {}
        for kind, count in (*recipe.drawn, *((f"check-{kind}", count) for kind, count in recipe.check)):
            plain, check = kind.removeprefix("check-"), kind.startswith("check-")

            def done(number: int, kind: str = kind, count: int = count) -> None:
                if progress:
                    progress(kind, number, count, "")

            path = folder / f"{kind}.pkl"
            self.of[kind] = cached(model, plain, count, recipe.seed + 1_000_000 * check, path, done)

    def batch(self, kind: str, step: int, count: int, visual: int) -> tuple[Packed, torch.Tensor]:
        """Packed questions of a step, and the visual tokens that are shown (B, V, D)."""
        rng = np.random.default_rng([11, self.recipe.seed, step, list(KINDS).index(kind)])
        things, tokens = self.of[kind]
        chosen = rng.choice(len(things), count, replace=False)
        asked = packed(rng, kind, [things[i] for i in chosen], visual, _SHARES)
        return asked, gather(tokens, chosen, asked.keep)


def _states(model: nn.Module, asked: Packed, tokens: torch.Tensor, kind: str) -> torch.Tensor:
    where = positions(torch.from_numpy(asked.keep), asked.layout, KINDS[kind].visual)
    return run_layers(model, tokens, torch.from_numpy(asked.ids), where, asked.layout)


@torch.no_grad()
def answered(model: nn.Module, data: _Data) -> dict[str, Any]:
    """Share of questions about things never trained on that are answered exactly, by kind and task; in per cent."""
    out: dict[str, Any] = {}
    for kind, count in data.recipe.check:
        right: dict[str, list[bool]] = defaultdict(list)
        things, tokens = data.of[f"check-{kind}"]
        for first in range(0, count, 4):
            rng, some = np.random.default_rng([13, first]), slice(first, first + 4)
            asked = packed(rng, kind, things[some], KINDS[kind].visual, {})
            hidden = _states(model, asked, gather(tokens, np.arange(count)[some], asked.keep), kind)
            for question, good in judged(model, hidden, asked)[2]:
                right[question.task].append(good)
        out[kind] = round(100 * float(np.mean([good for values in right.values() for good in values])), 1)
        out[f"{kind}_tasks"] = {task: round(100 * float(np.mean(values)), 1) for task, values in right.items()}
    return out


def _step(model: nn.Module, data: _Data, step: int) -> dict[str, float]:
    """Gradients of a step; its loss, and the share of right answers by kind."""
    recipe, out = data.recipe, {"loss": 0.0}
    mixture = recipe.parts if step < recipe.whole_from else recipe.whole
    for kind, count, visual, every in mixture:
        if step % every:
            continue
        asked, tokens = data.batch(kind, step, count, visual)
        if not asked.asked:  # each of two scenes may have what the other is asked about
            continue
        loss, right = answer_loss(model, _states(model, asked, tokens, kind), asked)
        out["loss"] += float(loss.detach())
        loss.backward()
        out[f"train_{kind}"] = 100 * float(np.mean([good for _, good in right]))
    return out


def _rate(recipe: ManyRecipe, step: int) -> float:
    left = (recipe.steps - step) / max(1, recipe.steps - recipe.decay_from)
    return recipe.rate * min(1.0, (step + 1) / 100) * min(1.0, max(0.01, left))


def train_many(
    folder: str | Path,
    recipe: ManyRecipe | None = None,
    resume: bool = False,
    threads: int = 1,
    checkpoint_seconds: float = 180.0,
    progress: Progress | None = None,
) -> Path:
    """Train the shipped weights further, or continue where a run stopped; on a CPU.

    Parameters
    ----------
    folder
        Run folder: cached visual tokens (1.8 GB with the defaults), checkpoint, `log.jsonl`, and at the end
        `many.safetensors`.
    recipe
        By default the one of the shipped changes.
    resume, threads, checkpoint_seconds, progress
        See `foveate.tiny.training.train.train`.

    Returns
    -------
    Path
        The file of the changes, for `foveate.tiny.model.merge`.

    Raises
    ------
    FileExistsError
        `folder` holds a run, and `resume` was not asked for.
    ValueError
        `folder` holds a run with another recipe.
    """
    from safetensors.torch import save_file

    folder, recipe = Path(folder), recipe or ManyRecipe()
    if not resume and any((folder / name).exists() for name in ("many.pt", "log.jsonl")):
        raise FileExistsError(f"{folder} holds a run already; resume it or choose another folder")
    with with_threads(threads), own_randomness():
        run = Run(folder, recipe, checkpoint_seconds)
        run.log(stage="start", threads=threads, torch=torch.__version__, recipe=asdict(recipe))
        model, _ = load()
        data = _Data(model, recipe, folder, progress)
        torch.manual_seed(recipe.seed)
        trained = open_layers(model, recipe.first_layer)
        _train(run, model, data, trained, progress)
        save_file(changes(model, trained, load()[0]), folder / "many.safetensors")
    return folder / "many.safetensors"


def _train(
    run: Run, model: nn.Module, data: _Data, trained: dict[str, nn.Parameter], progress: Progress | None
) -> None:
    recipe = data.recipe
    optimiser, layers = muon_of(list(trained.values()), recipe.rate), model.model.language_model.layers
    step = run.restore("many", [layers], [optimiser])
    means: dict[str, float] = {}
    clock = time.time()
    while step < recipe.steps:
        for group in optimiser.param_groups:
            group["lr"] = _rate(recipe, step)
        for name, value in _step(model, data, step).items():
            means[name] = 0.96 * means.get(name, value) + 0.04 * value
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        if step % 25 == 0 or step == recipe.steps:
            spent = (time.time() - clock) / 25
            due = step % recipe.check_every == 0 or step == recipe.steps
            run.log(stage="many", step=step, per_step=spent, **means, **(answered(model, data) if due else {}))
            clock = time.time()
        if progress:
            progress("many", step, recipe.steps, f"loss {means['loss']:.3f}")
        if run.due() or step == recipe.steps:
            run.save("many", step, [layers], [optimiser])
