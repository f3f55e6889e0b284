"""All settings of GlimpsePrune+, read from one YAML or JSON file; all names and kinds are checked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from foveate.learn.errors import TrainingError
from foveate.learn.glimpse import train as glimpse_train
from foveate.learn.glimpse_plus.rewards import Judge

Settings = TypeVar("Settings")


def read_config(path: Path) -> dict[str, Any]:
    """What a file says, by name.

    Parameters
    ----------
    path
        `.json`, else YAML.

    Raises
    ------
    TrainingError
        It cannot be read, or holds no names.
    """
    try:
        text = path.read_text(encoding="utf-8")
        read = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"cannot read the settings {path}: {error}") from error
    if not isinstance(read, dict) or not all(isinstance(name, str) for name in read):
        raise TrainingError(f"{path} must hold settings by name, such as `model: tiny`")
    return read


def make_settings(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Return a dataclass of these values.

    No library does: HfArgumentParser checks no kinds and nothing nested, dacite takes `true` for a whole number,
    OmegaConf takes 1 for `true` and 3 for a text, and pydantic takes no `1e-4`, which YAML reads as a text.

    Parameters
    ----------
    kind
        A dataclass whose fields are numbers, texts, mappings and other dataclasses, or None.
    where
        Source of the values, for errors.

    Raises
    ------
    TrainingError
        A name that the dataclass does not have, one that it lacks, or a value of another kind.
    """
    fields = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise TrainingError(f"{where} has no setting {', '.join(unknown)}; there are {', '.join(fields)}")
    missing = [
        name
        for name, one in fields.items()
        if name not in values and one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise TrainingError(f"{where} lacks {', '.join(missing)}")
    kinds = typing.get_type_hints(kind)
    return kind(**{name: _checked(name, value, kinds[name], where) for name, value in values.items()})


def _yaml(text: str) -> Any:
    import yaml  # transformers brings it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _checked(name: str, value: Any, hint: Any, where: str) -> Any:
    """The value, if it is of the kind that the field says; a mapping becomes the dataclass that is wanted."""
    kinds = tuple(typing.get_origin(one) or one for one in typing.get_args(hint) or (hint,))
    if not isinstance(hint, types.UnionType):
        kinds = (typing.get_origin(hint) or hint,)
    inside: Any = next((one for one in kinds if dataclasses.is_dataclass(one)), None)
    if inside is not None and isinstance(value, dict):
        return make_settings(inside, value, f"{where}, {name}")
    if tuple in kinds and isinstance(value, list):
        value = tuple(value)
    if float in kinds and not isinstance(value, (bool, float)):
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)  # YAML takes 1e-4 for text, and 1 for a whole number
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        told = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
        raise TrainingError(f"{where}: {name} must be {told}, got {value!r}")
    return value


@dataclass(frozen=True, kw_only=True)
class PlusSettings:
    """How to fine-tune a model with pruned visual context (experimental); the defaults are the published ones.

    Parameters
    ----------
    model
        A Hub id, a folder, or `tiny`, the embedded model.
    data, images
        A JSONL with image, question, answer and boxes, and the folder that its image paths start from.
    dataset
        Or a folder of the datasets library.
    suite
        Or a suite: `scenes`.
    skip_bad
        Leave out samples that cannot be used, which else are an error.
    samples
        How many at most, drawn at random.
    held_out
        Questions apart from them, at which the training of the predictor looks.
    seed
        Of scenes, order, adapter and sampling.
    pruned
        False: the same fine-tuning on all visual tokens, to compare with.
    predictor
        Who selects where a sample has no boxes: the folder of a saved pruner that cuts once, or a method by name;
        `glimpseprune` is the training-free stand-in.
    layer
        Where to cut without one; None: before ⌈2L/3⌉.
    reward
        exact_match, numeric, anls, judge, by_prompt, or module:function.
    judge
        The model that judges.
    group
        Answers drawn for each question.
    prompts
        Questions in one step, in each process.
    micro_batch
        Answers scored in one pass.
    epochs
        Passes over the data.
    max_steps
        Steps; where positive, instead of `epochs`.
    lr, warmup, grad_norm
        Highest learning rate, which falls by a cosine; the share of steps in which it rises; clipping of gradients.
    beta
        Weight of the KL divergence from the model before.
    temperature
        While sampling.
    lora_rank, lora_alpha
        Of the adapter on all linear layers of the language model.
    lora_dropout
        Drawn anew in each pass: with the published 0.05, log-probabilities differ a little from sampling to scoring.
    max_prompt
        Samples with longer prompts, before pruning, are left out.
    max_pruned_prompt
        Samples whose prompts are longer even when of the image only what lies under their boxes is left are left out,
        with `pruned` and without, so that both train on the same ones. A sample without boxes, or whose boxes
        cannot be placed, is not.
    max_completion
        Tokens of an answer.
    bf16
        Weights and activations in bfloat16; the adapter stays in float32.
    save_every
        Steps between checkpoints, from which a stopped run goes on.
    gradient_checkpointing
        Only without pruning.
    rollouts
        Who samples: `transformers`; hooks do not exist elsewhere.
    glimpse
        How the predictor is trained on the merged model, as by `foveate train glimpse`; None: none is.
    glimpse_sizes
        Its sizes where they are not the published ones, see `sizes_for`.
    """

    model: str
    data: str | None = None
    images: str | None = None
    dataset: str | None = None
    suite: str | None = None
    skip_bad: bool = False
    samples: int = 20_000
    held_out: int = 256
    seed: int = 0
    pruned: bool = True
    predictor: str | None = None
    layer: int | None = None
    reward: str = "exact_match"
    judge: Judge | None = None
    group: int = 4
    prompts: int = 8
    micro_batch: int = 4
    epochs: float = 1.0
    max_steps: int = -1
    lr: float = 1e-4
    warmup: float = 0.1
    grad_norm: float = 1.0
    beta: float = 0.04
    temperature: float = 1.0
    lora_rank: int = 32
    lora_alpha: int = 64
    lora_dropout: float = 0.05
    max_prompt: int | None = 6000
    max_pruned_prompt: int | None = 512
    max_completion: int = 128
    bf16: bool = False
    save_every: int = 50
    gradient_checkpointing: bool = False
    rollouts: str = "transformers"
    glimpse: glimpse_train.GlimpseSettings | None = field(default_factory=glimpse_train.GlimpseSettings)
    glimpse_sizes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.predictor is not None and self.layer is not None:
            raise TrainingError("the cut lies where the predictor's lies: give `layer` or `predictor`, not both")
        counts = ("samples", "prompts", "micro_batch", "lora_rank", "lora_alpha", "max_completion", "save_every")
        for name, least in (("group", 2), *((count, 1) for count in counts)):
            if getattr(self, name) < least:
                raise TrainingError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.prompts * self.group % self.micro_batch:
            raise TrainingError(
                f"prompts × group = {self.prompts * self.group} answers do not divide into passes of micro_batch = "
                f"{self.micro_batch}"
            )
        for name in ("warmup", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} lies in [0, 1), got {getattr(self, name)}")
        if min(self.lr, self.temperature, self.grad_norm) <= 0 or self.beta < 0:
            raise TrainingError("lr, temperature and grad_norm must be positive, and beta not negative")
        if self.max_steps < 1 and self.epochs <= 0:
            raise TrainingError("either max_steps or epochs must be positive")
        if self.rollouts != "transformers":
            raise TrainingError(
                f"rollouts by '{self.rollouts}' cannot be pruned, as the hooks do not exist there: use 'transformers'"
            )
        if self.pruned and self.gradient_checkpointing:
            raise TrainingError(
                "gradient checkpointing runs without a KV cache, which pruning needs: leave it off, or train unpruned"
            )


def read_settings(path: Path) -> PlusSettings:
    """Settings of a YAML or JSON file, with those of `judge` and `glimpse` inside.

    Raises
    ------
    TrainingError
        The file cannot be read, names a setting that does not exist, or gives one of the wrong kind.
    """
    return make_settings(PlusSettings, read_config(path), str(path))
