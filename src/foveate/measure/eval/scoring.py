"""Answers that are read instead of generated: how probable each of their tokens is, dense and pruned."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORE = -100  # label of what is no answer


@dataclass(frozen=True)
class Forced:
    """A batch of prompts, each with an answer after it.

    Attributes
    ----------
    inputs
        Arguments of the model, `labels` among them: they show the engine where the prompt ends, so that a method
        selects the same visual tokens as while generating.
    start
        Where the answers start; prompts are padded on the left.
    real
        (B, T) bool, answer tokens up to the one that ends the answer.
    """

    inputs: dict[str, Any]
    start: int
    real: Tensor


@torch.inference_mode()
def after_prompts(inputs: Mapping[str, Any], answer: Tensor, eos: int | list[int] | None) -> Forced:
    """Put answers after the prompts of a batch.

    Parameters
    ----------
    inputs
        The processed prompts.
    answer
        (B, T) long, token ids.
    eos
        The tokens that end an answer.
    """
    prompt, inputs = inputs["input_ids"], dict(inputs)
    ends = _ends(eos, answer)
    real = ends.cumsum(-1) - ends.long() == 0  # the end itself is a prediction too
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == prompt.shape and name != "input_ids":
            fill = real.to(value.dtype) if name == "attention_mask" else torch.zeros_like(answer, dtype=value.dtype)
            inputs[name] = torch.cat([value, fill], -1)
    labels = torch.cat([torch.full_like(prompt, IGNORE), answer.masked_fill(~real, IGNORE)], -1)
    whole = torch.cat([prompt, answer], -1)
    return Forced({**inputs, "input_ids": whole, "labels": labels, "use_cache": False}, prompt.shape[1], real)


def _ends(eos: int | list[int] | None, answer: Tensor) -> Tensor:
    known = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    return torch.isin(answer, torch.tensor(known, dtype=answer.dtype, device=answer.device))


@torch.inference_mode()
def next_words(model: Any, forced: Forced) -> Tensor:
    """(B, T, V) log-probabilities, fp32, of each answer token's place."""
    logits = model(**forced.inputs).logits[:, forced.start - 1 : -1]
    return logits.float().log_softmax(-1)


def answer_words(model: Any, forced: Forced) -> Tensor:
    """(B, T, V) log-probabilities as `next_words`, of the answer's places alone where the model can be asked so."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return next_words(model, forced)
    length = forced.real.shape[1]
    inputs = {name: value for name, value in forced.inputs.items() if name != "labels"}
    with torch.inference_mode():
        logits = model(**inputs, logits_to_keep=length + 1).logits[:, -length - 1 : -1]
        return logits.float().log_softmax(-1)


def compare(dense: Tensor, other: Tensor, real: Tensor) -> list[dict[str, float]]:
    """Return how far the next words are from the dense model's, a mean over each answer's tokens.

    Parameters
    ----------
    dense, other
        (B, T, V), log-probabilities.
    real
        (B, T) bool, the answer's tokens.

    Returns
    -------
    list of dict
        Of each sample "kl", KL(dense || other) in nats, and "same-tokens", the share of tokens whose most probable
        word is the dense one.
    """
    each = dense.exp() * (dense - other)
    kl = each.masked_fill(dense.isneginf(), 0.0).sum(-1).clamp(min=0)  # what is impossible for both is no difference
    same = (dense.argmax(-1) == other.argmax(-1)).double()
    number = real.sum(-1)
    means = ((value.double() * real).sum(-1).cpu() / number.cpu() for value in (kl, same))
    return [{"kl": far, "same-tokens": share} for far, share in zip(*(mean.tolist() for mean in means), strict=True)]


def likeliest_letter(words: Tensor, letters: Sequence[Sequence[int]]) -> int:
    """Return which letter is most probable.

    Parameters
    ----------
    words
        (V,), log-probabilities of the first token of an answer.
    letters
        Of each letter the ids of the tokens that it can be.
    """
    return max(range(len(letters)), key=lambda at: float(words[list(letters[at])].max()))
