"""One training step of GlimpsePrune: the frozen model answers with the glimpse token in its prompt."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.arguments import cache_of, with_cache
from foveate.engine.attention_rows import attention_rows, attention_tap
from foveate.families import Parts, family_of
from foveate.learn.data import Box, GroundedSample
from foveate.learn.errors import refuse_states
from foveate.learn.glimpse.targets import kept_share, localisation_loss, recall, shown_targets
from foveate.learn.looking import Looking, as_model
from foveate.measure.eval.scoring import IGNORE
from foveate.measure.loading import LoadedModel
from foveate.pruners import GlimpsePrune, VisualTokens
from foveate.pruners.glimpseprune.modules import GlimpseConfig, GlimpseModules


@dataclass(frozen=True)
class Places:
    """Where the answers of a batch lie: for each sample its image's boxes, and that image's (width, height)."""

    boxes: Sequence[Sequence[Box]]
    sizes: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Weighing:
    """What the parts of the loss count (section 3.4 of the paper): the answer, and where it lies."""

    answer: float = 1.0
    place: float = 1.0
    dice: float = 1.0
    bce: float = 0.1


class GlimpseForTraining(nn.Module):
    """Glimpse and predictor as the only parameters; the base model is used, not owned, and stays frozen.

    Parameters
    ----------
    loaded
        The base model, in evaluation mode, and its processor.
    modules
        What is trained.
    weighing
        Of the loss.
    dropout
        On the glimpse rows.

    Raises
    ------
    UnsupportedModelError
        For a model with linear attention or convolutions in its decoder.
    """

    def __init__(self, loaded: LoadedModel, modules: GlimpseModules, weighing: Weighing, dropout: float = 0.1) -> None:
        super().__init__()
        refuse_states(loaded.model)
        self.learned, self.weighing = modules, weighing
        self.dropout = nn.Dropout(dropout)
        # no sub-modules: neither trained, nor saved, nor moved
        object.__setattr__(self, "base", loaded.model)
        object.__setattr__(self, "processor", loaded.processor)

    def forward(self, start: int, placed: Places, labels: Tensor, **inputs: Any) -> dict[str, Tensor]:
        """Loss and what it is made of; see `collate` for the arguments.

        The prompt does not see the glimpse token, so that it goes through the model once without gradients; glimpse
        token and answer follow on its cache.
        """
        inputs = {name: as_model(value, self.base) for name, value in inputs.items()}
        return self.answer(read_prompt(self.base, self.learned.config, inputs, start), inputs, start, placed, labels)

    def answer(
        self, read: ReadPrompt, inputs: dict[str, Any], start: int, placed: Places, labels: Tensor
    ) -> dict[str, Tensor]:
        """The loss on a prompt that the model has read; its cache then holds the answer, too."""
        config, pruner = self.learned.config, GlimpsePrune(weights=self.learned)
        attention: list[Tensor] = []
        batch, length = inputs["input_ids"].shape

        def listen(query: Tensor, key: Tensor, value: Tensor, mask: Any, options: dict[str, Any]) -> None:
            first = torch.zeros(batch, 1, dtype=torch.long, device=query.device)
            attention.append(attention_rows(query, key, mask, options, first, pruner.attention_form()))

        parts = family_of(self.base).parts(self.base)
        behind = read.last + 1 + torch.arange(length - start, device=read.last.device)
        rows = self.dropout(self.learned.glimpse())
        with attention_tap(parts.attention[config.layer - 1], listen), glimpse_first(parts, rows):
            out = self.base(
                input_ids=inputs["input_ids"][:, start:],
                position_ids=behind.expand(*behind.shape[:-2], batch, -1),
                attention_mask=inputs["attention_mask"],
                **with_cache(self.base, read.cache),
                labels=labels[:, start:],
                use_cache=True,
            )
        loss = {"answer_loss": out.loss}
        total = self.weighing.answer * out.loss
        if read.tokens is not None:
            tokens = read.tokens
            places = tokens.position - (length - attention[0].shape[-1])  # a sliding window's cache holds the last
            told = attention[0].gather(3, places.clamp(min=0)[:, None, None].expand(-1, config.heads, 1, -1))
            told = told.masked_fill((places < 0)[:, None, None], -math.inf)
            told = told.masked_fill(~tokens.valid[:, None, None], 0)
            logits = pruner.logits(dataclasses.replace(tokens, attention=told))
            target = shown_targets(placed.boxes, placed.sizes, tokens, family_of(self.base), self.processor)
            place, each = localisation_loss(logits, target, tokens.valid, self.weighing.dice, self.weighing.bce)
            total = total + self.weighing.place * place
            keep = (logits.sigmoid() > pruner.threshold) & tokens.valid
            loss |= {**each, "recall": recall(keep, target), "kept": kept_share(keep, tokens.valid)}
        return {"loss": total, **{name: value.detach() for name, value in loss.items()}}


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt that the model has read.

    Attributes
    ----------
    cache
        Of all layers.
    last
        (…, B or 1, 1) position ids of the last prompt token.
    tokens
        The visual tokens; None of a batch without any.
    """

    cache: Any
    last: Tensor
    tokens: VisualTokens | None


@torch.no_grad()
def read_prompt(model: Any, config: GlimpseConfig, inputs: dict[str, Any], start: int) -> ReadPrompt:
    """Let the model read the first `start` columns of the inputs."""
    shape = inputs["input_ids"].shape
    prompt = {
        name: value[:, :start] if isinstance(value, Tensor) and value.shape == shape else value
        for name, value in inputs.items()
    }
    looking = Looking(layer=config.layer, vision=config.vision_layers)
    with looking(model), positions_of(family_of(model).parts(model)) as positions:
        cache = cache_of(model(**prompt, use_cache=True))
    return ReadPrompt(cache, positions[0][..., -1:], looking.seen[0] if looking.seen else None)


@contextlib.contextmanager
def positions_of(parts: Parts) -> Iterator[list[Tensor]]:
    """While open, the position ids that the model makes, (…, B or 1, L), are put into the list."""
    found: list[Tensor] = []

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        found.append(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    handle = parts.rotary.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@contextlib.contextmanager
def glimpse_first(parts: Parts, rows: Tensor) -> Iterator[None]:
    """While open, the first token is the glimpse token: row 0 of (L, 1, D) is its embedding, later rows are added."""

    def hook(number: int, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0] if args else kwargs["hidden_states"]
        own = rows[number].to(hidden).expand(hidden.shape[0], -1, -1)
        hidden = torch.cat([own + hidden[:, :1] if number else own, hidden[:, 1:]], 1)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    handles = [
        layer.register_forward_pre_hook(partial(hook, number), with_kwargs=True)
        for number, layer in enumerate(parts.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def collate(loaded: LoadedModel, samples: Sequence[GroundedSample]) -> dict[str, Any]:
    """A batch for `GlimpseForTraining`: prompts padded on the left, one place for the glimpse token, the answers.

    Returns
    -------
    dict
        Arguments of the model with `labels`, on the CPU; `start`, the glimpse token's column; `placed`, where
        the answers lie.
    """
    images = [sample.image() for sample in samples]
    inputs = dict(loaded.process([sample.question for sample in samples], [[image] for image in images]))
    prompt = inputs["input_ids"]
    eos = _eos(loaded)
    answers = [torch.tensor([*_words(loaded, sample), eos]) for sample in samples]
    answer = nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=eos)
    real = torch.arange(answer.shape[1]) < torch.tensor([len(one) for one in answers])[:, None]
    behind = torch.cat([torch.full_like(answer[:, :1], eos), answer], -1)
    there = torch.nn.functional.pad(real, (1, 0), value=True)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == prompt.shape and name != "input_ids":
            fill = there.to(value.dtype) if name == "attention_mask" else torch.zeros_like(behind, dtype=value.dtype)
            inputs[name] = torch.cat([value, fill], -1)
    before = torch.full((len(samples), prompt.shape[1] + 1), IGNORE)
    return {
        **inputs,
        "input_ids": torch.cat([prompt, behind], -1),
        "labels": torch.cat([before, answer.masked_fill(~real, IGNORE)], -1),
        "start": prompt.shape[1],
        "placed": Places([sample.boxes for sample in samples], [image.size for image in images]),
    }


def _words(loaded: LoadedModel, sample: GroundedSample) -> list[int]:
    """Ids of the answer; after a prompt that ends in a word, such as "ASSISTANT:", it begins with a blank."""
    blank = "" if loaded.prompt("", 1)[-1:] in ("\n", ">", " ", "") else " "
    return list(loaded.processor.tokenizer(blank + sample.answer, add_special_tokens=False)["input_ids"])


def _eos(loaded: LoadedModel) -> int:
    known = loaded.model.generation_config.eos_token_id
    first = known[0] if isinstance(known, list) and known else known
    return int(loaded.processor.tokenizer.eos_token_id if first is None else first)
