"""Training GlimpsePrune's glimpse and predictor on a frozen model."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from foveate.learn.data import GroundedSample, GroundedSamples
from foveate.learn.errors import TrainingDataError, TrainingError
from foveate.learn.glimpse.check import Check, check, told
from foveate.learn.glimpse.step import GlimpseForTraining, Weighing, collate
from foveate.learn.plots import draw_training
from foveate.measure import environment
from foveate.measure.loading import LoadedModel
from foveate.pruners import GlimpsePrune
from foveate.pruners.glimpseprune.modules import GlimpseConfig, GlimpseModules
from foveate.pruners.glimpseprune.sizes import sizes_for
from foveate.torch_state import own_randomness

RESULT, PICTURE, CHECKPOINTS = "training.json", "training.png", "checkpoints"


@dataclass(frozen=True)
class GlimpseSettings:
    """How to train; the defaults are the published ones (table 11 of the paper, one device instead of two).

    Attributes
    ----------
    batch_size, accumulation
        Samples a device and step, and steps before an update.
    epochs, max_steps
        How long; `max_steps` updates, where given, have the last word.
    learning_rate, warmup
        AdamW's, with a cosine schedule after a linear warm-up over this share of the updates.
    dropout
        On the glimpse rows.
    weighing
        Of the loss.
    bf16
        Mixed precision.
    check_every, check_samples
        Updates between looks at the held-out questions, and of how many.
    max_keep
        Cap at those looks, beside the uncapped figures of the end.
    """

    batch_size: int = 1
    accumulation: int = 16
    epochs: float = 1.0
    max_steps: int = -1
    learning_rate: float = 1e-4
    warmup: float = 0.1
    dropout: float = 0.1
    weighing: Weighing = field(default_factory=Weighing)
    bf16: bool = False
    seed: int = 42
    check_every: int = 100
    check_samples: int = 128
    check_batch: int = 16
    max_new_tokens: int = 32
    save_every: int = 100
    max_keep: float | None = 0.111

    def __post_init__(self) -> None:
        GlimpsePrune(max_keep=self.max_keep)  # says what is wrong with it
        counts = ("batch_size", "accumulation", "check_samples", "check_batch", "max_new_tokens", "save_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} lies in [0, 1), got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.max_steps < 1 and self.max_steps != -1:
            raise TrainingError(f"max_steps is a number of updates, or -1 to follow the epochs, got {self.max_steps}")
        if self.max_steps < 1 and not 0 < self.epochs < math.inf:
            raise TrainingError(f"either max_steps or epochs must be positive, got {self.max_steps} and {self.epochs}")
        if self.check_every < 0:
            raise TrainingError(f"check_every is a number of updates, or 0 for none, got {self.check_every}")


def need_accelerate() -> None:
    """Raise unless what trains is installed.

    Raises
    ------
    TrainingError
        With the command that installs it.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise TrainingError("training needs accelerate: pip install 'foveate[learn]'")


@own_randomness()
def train_glimpse(
    loaded: LoadedModel,
    samples: GroundedSamples,
    held_out: Sequence[GroundedSample],
    settings: GlimpseSettings,
    folder: Path,
    config: GlimpseConfig | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Train glimpse and predictor, and write them as a pruner to a folder that `foveate.load` takes.

    Parameters
    ----------
    loaded
        The model; it is left as it was.
    samples
        What is learned from.
    held_out
        Questions that are looked at now and then, and at the end; none of `samples`.
    folder
        Gets the pruner, training.json, training.png and the checkpoints.
    config
        Sizes; by default the published ones, see `sizes_for`.
    resume
        Go on from the last checkpoint in the folder.

    Returns
    -------
    dict
        Plain data for JSON, as in training.json.

    Raises
    ------
    TrainingDataError
        No sample has a box, or the folder holds a run and `resume` was not asked for.
    """
    from transformers import TrainingArguments, set_seed

    from foveate.learn.glimpse.trainer import GlimpseTrainer

    # 1. what can be refused before anything is made
    if not any(sample.boxes for sample in samples.items):
        raise TrainingDataError(f"no sample of {samples.name} has a box: there is nothing to learn where to look")
    checkpoints, there = folder / CHECKPOINTS, earlier_run(folder, resume)
    # 2. the modules, and how they are trained
    set_seed(settings.seed)
    model = loaded.model
    config = config or sizes_for(model)
    modules = GlimpseModules(config).to(model.device)
    learner = GlimpseForTraining(loaded, modules, settings.weighing, settings.dropout)
    frozen = {weight: weight.requires_grad for weight in model.parameters()}
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        max_grad_norm=1.0,
        bf16=settings.bf16,
        seed=settings.seed,
        logging_steps=10,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=1,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
    )

    def look(pruner: GlimpsePrune, number: int) -> Check:
        return check(loaded, held_out[:number], pruner, settings.check_batch, settings.max_new_tokens)

    trainer = GlimpseTrainer(
        model=learner,
        args=arguments,
        train_dataset=Listed(samples.items),
        data_collator=lambda batch: collate(loaded, batch),
        look=lambda pruner: told(look(pruner, settings.check_samples)),
        every=settings.check_every,
        max_keep=settings.max_keep,
        report=progress,
    )
    # 3. train, with the model frozen
    try:
        for weight in frozen:
            weight.requires_grad_(False)
        trainer.train(resume_from_checkpoint=str(_last(there)) if there else None)
    finally:
        for weight, wanted in frozen.items():
            weight.requires_grad_(wanted)
    # 4. what there is to tell of the run
    modules.eval()
    result = {
        "format": "foveate-glimpse-1",
        "command": environment.command(),
        "configuration": {
            "model": loaded.name,
            "model_type": model.config.model_type,
            "weights": environment.model_fingerprint(model),
            "samples": len(samples.items),
            "from": samples.name,
            "questions": samples.fingerprint,
            **dataclasses.asdict(settings),
            "sizes": dataclasses.asdict(config),
            "parameters": sum(weight.numel() for weight in modules.parameters()),
            "versions": environment.versions(),
        },
        "machine": environment.machine(model.device),
        "history": trainer.history,
        "checks": trainer.checks,
    }
    # 5. the trained predictor on held-out questions, saved
    if trainer.is_world_process_zero():
        pruner = GlimpsePrune(weights=modules)
        result["held_out"] = {
            "dense": told(check(loaded, held_out, None, settings.check_batch, settings.max_new_tokens)),
            "no cap": told(look(pruner, len(held_out))),
        }
        if settings.max_keep is not None:
            capped = dataclasses.replace(pruner, max_keep=settings.max_keep)
            result["held_out"][f"at most {settings.max_keep:.1%}"] = told(look(capped, len(held_out)))
        modules.about = {
            "base_model": loaded.name,
            "metrics": result["held_out"],
            "trained_on": f"{len(samples.items)} samples of {samples.name}",
        }
        pruner.save_pretrained(folder)
        (folder / RESULT).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draw_training(result, folder / PICTURE)
    return result


def earlier_run(folder: Path, resume: bool) -> list[Path]:
    """Checkpoints of an earlier run in a folder.

    Raises
    ------
    TrainingDataError
        There are some, and they are not to be used.
    """
    checkpoints = folder / CHECKPOINTS
    there = sorted(checkpoints.glob("checkpoint-*")) if checkpoints.is_dir() else []
    if there and not resume:
        raise TrainingDataError(f"{checkpoints} holds checkpoints of an earlier run: use --resume, or remove them")
    return there


class Listed(Dataset):
    """Samples for a data loader."""

    def __init__(self, items: Sequence[GroundedSample]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> GroundedSample:
        return self.items[index]


def _last(checkpoints: Sequence[Path]) -> Path:
    return max(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]))
