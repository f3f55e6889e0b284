"""One training step of GlimpsePrune: the frozen model answers with the glimpse token in its prompt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.families import family_of
from foveate.learn.divergence import IGNORE
from foveate.learn.grounded import GroundedSample
from foveate.learn.localisation import localisation_loss
from foveate.learn.targets import target_masks
from foveate.measure.loading import LoadedModel
from foveate.pruners import GlimpsePrune, PromptRows, VisualTokens
from foveate.pruners.glimpse_modules import GlimpseModules


@dataclass(frozen=True, kw_only=True)
class Watching(GlimpsePrune):
    """Says what the predictor would of a prompt that ends with the glimpse token, and cuts nothing."""

    differentiable: ClassVar[bool] = True

    compact_cache: bool = False
    seen: list[tuple[VisualTokens, Tensor]] = field(default_factory=list, compare=False, repr=False)

    def extra_tokens(self, model: nn.Module) -> Tensor | None:
        return None

    def attention_rows(self, layer: int, rows: PromptRows) -> Tensor | None:
        return rows.last[:, None]

    def select(self, tokens: VisualTokens) -> Tensor:
        self.seen.append((tokens, self.logits(tokens)))
        return tokens.valid


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
    model
        The base model, in evaluation mode.
    modules
        What is trained.
    weighing
        Of the loss.
    dropout
        On the glimpse rows.
    """

    def __init__(self, model: Any, modules: GlimpseModules, weighing: Weighing, dropout: float = 0.1) -> None:
        super().__init__()
        self.learned, self.weighing = modules, weighing
        self.dropout = nn.Dropout(dropout)
        object.__setattr__(self, "base", model)  # no sub-module: neither trained, nor saved, nor moved

    def forward(self, start: int, boxes: Sequence[Any], labels: Tensor, **inputs: Any) -> dict[str, Tensor]:
        """Loss and what it is made of; see `collate` for the arguments."""
        rows = self.dropout(self.learned.glimpse())
        watching = Watching(weights=self.learned)
        inputs = {name: _as_model(value, self.base) for name, value in inputs.items()}
        with watching(self.base), glimpse_in_prompt(self.base, rows, start):
            out = self.base(**inputs, labels=labels, use_cache=False)
        loss = {"answer_loss": out.loss}
        total = self.weighing.answer * out.loss
        if watching.seen:
            tokens, logits = watching.seen[0]
            target = target_masks(boxes, tokens.grids).to(logits.device)
            target = nn.functional.pad(target, (0, logits.shape[1] - target.shape[1])) & tokens.valid
            place, parts = localisation_loss(logits, target, tokens.valid, self.weighing.dice, self.weighing.bce)
            total = total + self.weighing.place * place
            loss |= parts
        return {"loss": total, **{name: value.detach() for name, value in loss.items()}}


@contextlib.contextmanager
def glimpse_in_prompt(model: Any, rows: Tensor, place: int) -> Iterator[None]:
    """While open, the token at `place` is the glimpse token: row 0 instead of its embedding, later rows added.

    Parameters
    ----------
    rows
        (L, 1, D), with gradients.
    place
        Its column in every sample.
    """

    def hook(number: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0] if args else kwargs["hidden_states"]
        own = rows[number].to(hidden).expand(hidden.shape[0], -1, -1)
        if number:
            own = own + hidden[:, place : place + 1]
        hidden = torch.cat([hidden[:, :place], own, hidden[:, place + 1 :]], 1)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    handles = []
    try:
        for number, layer in enumerate(family_of(model).parts(model).layers):
            handles.append(
                layer.register_forward_pre_hook(
                    lambda layer, args, kwargs, number=number: hook(number, args, kwargs), with_kwargs=True
                )
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


def collate(loaded: LoadedModel, samples: Sequence[GroundedSample]) -> dict[str, Any]:
    """A batch for `GlimpseForTraining`: prompts padded on the left, one place for the glimpse token, the answers.

    Returns
    -------
    dict
        Arguments of the model with ``labels``, on the CPU; ``start``, the glimpse token's column; ``boxes``, for each
        sample those of its image.
    """
    inputs = dict(loaded.process([sample.question for sample in samples], [[sample.image()] for sample in samples]))
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
        "boxes": [[sample.boxes] for sample in samples],
    }


def _words(loaded: LoadedModel, sample: GroundedSample) -> list[int]:
    """Ids of the answer; behind a prompt that ends in a word, such as "ASSISTANT:", it begins with a blank."""
    blank = "" if loaded.prompt("", 1)[-1:] in ("\\n", ">", " ") else " "
    return list(loaded.processor.tokenizer(blank + sample.answer, add_special_tokens=False)["input_ids"])


def _eos(loaded: LoadedModel) -> int:
    known = loaded.model.generation_config.eos_token_id
    first = known[0] if isinstance(known, list) and known else known
    return int(loaded.processor.tokenizer.eos_token_id if first is None else first)


def _as_model(value: Any, model: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else None)
