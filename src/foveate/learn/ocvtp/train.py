"""Training OC-VTP's slots on features of a frozen vision encoder, which are read once."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.learn.btp.samples import Sample, Samples, from_folder
from foveate.learn.data import SUITES, GroundedSample, GroundedSamples
from foveate.learn.errors import TrainingDataError, TrainingError
from foveate.learn.looking import Looking, as_model
from foveate.learn.ocvtp.decoder import SlotDecoder, reconstruction_loss
from foveate.measure import environment
from foveate.measure.loading import LoadedModel
from foveate.pruners.ocvtp.method import OCVTP
from foveate.pruners.ocvtp.modules import SlotConfig, SlotModules, slots_for
from foveate.torch_state import own_randomness

RESULT = "training.json"
SHARES = (1 / 36, 1 / 18, 1 / 9, 2 / 9)  # slots a token: 16, 32, 64 and 128 of CLIP's 576
LOWEST_RATE = 1e-8
UNEVEN = "images give {} and {} visual tokens, but positions are learnt for one number: give images of one size"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SlotSettings:
    """How to train; the defaults are those of the released code.

    Attributes
    ----------
    batch_size, epochs
        Images an update, and passes over all images.
    max_steps
        Updates, instead of the epochs; -1: as the epochs say.
    learning_rate, warmup
        AdamW's, with a cosine schedule after a linear warm-up over this share of the updates.
    seed
        Of initial weights, order, slots and of what the decoder is shown.
    """

    batch_size: int = 12
    epochs: float = 30.0
    max_steps: int = -1
    learning_rate: float = 1e-3
    warmup: float = 4 / 30
    seed: int = 42

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise TrainingError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.warmup < 1:
            raise TrainingError(f"warmup lies in [0, 1), got {self.warmup}")
        if not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.max_steps < 1 and self.max_steps != -1:
            raise TrainingError(f"max_steps is a number of updates, or -1 to follow the epochs, got {self.max_steps}")
        if self.max_steps < 1 and not 0 < self.epochs < math.inf:
            raise TrainingError(f"either max_steps or epochs must be positive, got {self.max_steps} and {self.epochs}")

    def steps(self, images: int) -> int:
        """Updates that a training on so many images takes."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.epochs * images / self.batch_size)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update `step`, from 0, of `steps`."""
        warm = round(self.warmup * steps)
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        falling = (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        return LOWEST_RATE + (self.learning_rate - LOWEST_RATE) * falling


def image_folder(folder: Path | None, suite: str | None, number: int, seed: int) -> Samples | None:
    """Images of a folder, or None of a suite, whose scenes are drawn later; asked before a model is loaded.

    Raises
    ------
    TrainingDataError
        No suite of this name.
    CalibrationError
        No such folder, fewer images in it, or one that cannot be read.
    """
    if folder is not None:
        return from_folder(folder, number, seed)
    if suite not in SUITES:
        raise TrainingDataError(f"no suite '{suite}' to train on; there are {', '.join(SUITES)}")
    return None


def image_samples(
    folder: Path | None, suite: str | None, number: int, held_out: int, seed: int, progress: Progress | None = None
) -> tuple[Samples | GroundedSamples, Sequence[Sample | GroundedSample]]:
    """Images to learn from and images that the loss is only worked out on; those of a suite are in no evaluation.

    Parameters
    ----------
    folder, suite
        Where they are from: a folder of images or, with None, a suite.

    Raises
    ------
    TrainingDataError, CalibrationError
        As `image_folder`.
    """
    found = image_folder(folder, suite, number + held_out, seed)
    if found is not None:
        return dataclasses.replace(found, items=found.items[:number]), found.items[number:]
    draw = SUITES[str(suite)]
    apart = draw(held_out, seed + 1, per_scene=1, progress=progress)
    return draw(number, seed, per_scene=1, progress=progress), apart.items


@own_randomness()
def train_slots(
    loaded: LoadedModel,
    samples: Samples | GroundedSamples,
    held_out: Sequence[Sample | GroundedSample],
    settings: SlotSettings,
    folder: Path,
    config: SlotConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train slots to rebuild a vision encoder's features, and write them as a pruner that `foveate.load` takes.

    Parameters
    ----------
    loaded
        The model; it stays as it is.
    samples
        Whose images are learned from; questions are of no account.
    held_out
        Whose images the loss is also worked out on, before and after.
    folder
        Gets the pruner and training.json.
    config
        Sizes; by default the published ones, see `slots_for`.

    Returns
    -------
    dict
        Plain data for JSON, as in training.json.

    Raises
    ------
    TrainingDataError
        Images that give different numbers of visual tokens.
    UnsupportedModelError
        When the vision encoder's outputs cannot be read.
    """
    config = config or slots_for(loaded.model)
    features = features_of(loaded, samples.items, config.vision_layer, settings.batch_size, progress)
    apart = features_of(loaded, held_out, config.vision_layer, settings.batch_size, progress)
    if features.shape[1:] != apart.shape[1:]:
        raise TrainingDataError(UNEVEN.format(features.shape[1], apart.shape[1]))
    torch.manual_seed(settings.seed)
    modules = SlotModules(config).to(features.device)
    decoder = SlotDecoder(features.shape[1], features.shape[2], config.size, heads=_heads(features.shape[2]))
    decoder.to(features.device)
    before = _held_out(modules, decoder, apart, settings)
    history = _fit(modules, decoder, features, settings, progress)
    after = _held_out(modules, decoder, apart, settings)
    held = {"images": len(held_out), "loss before": round(before, 4), "loss after": round(after, 4)}
    result = {
        "format": "foveate-ocvtp-1",
        "command": environment.command(),
        "configuration": _configuration(loaded, samples, settings, modules, features.shape[1]),
        "machine": environment.machine(features.device),
        "history": history,
        "held_out": held,
    }
    trained_on = f"{len(samples.items)} images of {samples.name}"
    modules.about = {"base_model": loaded.name, "metrics": held, "trained_on": trained_on}
    OCVTP(weights=modules.eval()).save_pretrained(folder)
    (folder / RESULT).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def _configuration(
    loaded: LoadedModel, samples: Samples | GroundedSamples, settings: SlotSettings, modules: SlotModules, tokens: int
) -> dict[str, Any]:
    return {
        "model": loaded.name,
        "model_type": loaded.model.config.model_type,
        "weights": environment.model_fingerprint(loaded.model),
        "samples": len(samples.items),
        "from": samples.name,
        "images": samples.fingerprint,
        "tokens": tokens,
        **dataclasses.asdict(settings),
        "sizes": dataclasses.asdict(modules.config),
        "parameters": sum(weight.numel() for weight in modules.parameters()),
        "versions": environment.versions(),
    }


@torch.no_grad()
def features_of(
    loaded: LoadedModel,
    samples: Sequence[Sample | GroundedSample],
    layer: int,
    batch_size: int,
    progress: Progress | None = None,
) -> Tensor:
    """(I, T, C) fp32, what block `layer` of the vision encoder puts out for the visual tokens of each image.

    Raises
    ------
    TrainingDataError
        Images that give different numbers of visual tokens.
    """
    found: list[Tensor] = []
    for at in range(0, len(samples), batch_size):
        batch = samples[at : at + batch_size]
        inputs = loaded.process([one.question for one in batch], [[one.image()] for one in batch])
        looking = Looking(vision=(layer,))
        with looking(loaded.model):
            loaded.model(**{name: as_model(value, loaded.model) for name, value in inputs.items()})
        tokens = looking.seen[0]
        cells = (tokens.valid & (tokens.grid >= 0)).cpu()
        vision = tokens.vision[0].float()
        found += [one[there.nonzero()[:, 0].to(one.device)] for one, there in zip(vision, cells, strict=True)]
        if len(sizes := sorted({len(found[0]), *map(len, found[at:])})) > 1:
            raise TrainingDataError(UNEVEN.format(*sizes[:2]))
        if progress:
            progress("reading the features", min(at + batch_size, len(samples)), len(samples))
    return torch.stack(found)


def _heads(width: int) -> int:
    """Four as published, or as many of them as divide the width."""
    return math.gcd(4, width)


def _fit(
    modules: SlotModules, decoder: SlotDecoder, features: Tensor, settings: SlotSettings, progress: Progress | None
) -> list[dict[str, float]]:
    """Train both; what there is to tell of every tenth update, with the mean loss since the one before."""
    weights = [*modules.parameters(), *decoder.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate)
    steps, order, losses, history = settings.steps(len(features)), torch.empty(0, dtype=torch.long), [], []
    for step in range(steps):
        if len(order) < min(settings.batch_size, len(features)):
            order = torch.cat([order, torch.randperm(len(features))])
        rows, order = order[: settings.batch_size], order[settings.batch_size :]
        slots = counts(features.shape[1])[int(torch.randint(len(SHARES), ()))]
        for group in optimiser.param_groups:
            group["lr"] = settings.rate(step, steps)
        loss = reconstruction_loss(modules, decoder, features[rows.to(features.device)], slots)
        if not bool(loss.isfinite()):
            raise TrainingError(f"the loss is {float(loss)} at update {step + 1}: try a lower learning rate")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 10 == 0 or step + 1 == steps:
            rate = float(optimiser.param_groups[0]["lr"])
            history.append({"step": step + 1, "loss": sum(losses) / len(losses), "learning_rate": rate})
            losses.clear()
        if progress:
            progress("training", step + 1, steps)
    return history


def counts(tokens: int) -> list[int]:
    """How many slots trainings take by turns, at random."""
    return [max(1, round(share * tokens)) for share in SHARES]


@torch.no_grad()
def _held_out(modules: SlotModules, decoder: SlotDecoder, features: Tensor, settings: SlotSettings) -> float:
    """The mean loss over these images and over all numbers of slots, with draws of their own."""
    total = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for rows in features.split(settings.batch_size):
            for slots in counts(features.shape[1]):
                total += len(rows) * float(reconstruction_loss(modules, decoder, rows, slots))
    return total / len(features) / len(SHARES)
