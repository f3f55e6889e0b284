"""Answers that are read instead of generated: how probable each of their tokens is, dense and pruned."""

from __future__ import annotations

from collections.abc import Mapping
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
