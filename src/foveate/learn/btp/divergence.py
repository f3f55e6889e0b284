"""How far a pruned model's next words are from the dense model's, on the dense model's own answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.learn.btp.samples import Sample
from foveate.learn.errors import CalibrationError
from foveate.measure.loading import LoadedModel
from foveate.pruners import Pruner

IGNORE = -100  # label of what is no answer
CAP = 1.0  # nats that one word counts at most: a few that went quite another way must not outweigh all the others


@dataclass(frozen=True)
class Forced:
    """A batch of prompts, each with the first tokens of the dense model's greedy answer after it.

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
def dense_answer(loaded: LoadedModel, samples: Sequence[Sample], tokens: int) -> Tensor:
    """(B, T) ids of the first tokens, at most `tokens`, of the dense model's greedy answers."""
    inputs = _inputs(loaded, samples)
    whole: Tensor = loaded.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return whole[:, inputs["input_ids"].shape[1] :].clone()


@torch.inference_mode()
def force(loaded: LoadedModel, samples: Sequence[Sample], answer: Tensor) -> Forced:
    """Put the answers (B, T) after the prompts."""
    inputs = _inputs(loaded, samples)
    prompt = inputs["input_ids"]
    ends = _ends(loaded.model.generation_config.eos_token_id, answer)
    real = ends.cumsum(-1) - ends.long() == 0  # the end itself is a prediction too
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == prompt.shape and name != "input_ids":
            fill = real.to(value.dtype) if name == "attention_mask" else torch.zeros_like(answer, dtype=value.dtype)
            inputs[name] = torch.cat([value, fill], -1)
    labels = torch.cat([torch.full_like(prompt, IGNORE), answer.masked_fill(~real, IGNORE)], -1)
    whole = torch.cat([prompt, answer], -1)
    return Forced({**inputs, "input_ids": whole, "labels": labels, "use_cache": False}, prompt.shape[1], real)


def _inputs(loaded: LoadedModel, samples: Sequence[Sample]) -> dict[str, Any]:
    return dict(loaded.inputs([sample.question for sample in samples], [[sample.image()] for sample in samples]))


def _ends(eos: int | list[int] | None, answer: Tensor) -> Tensor:
    known = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    return torch.isin(answer, torch.tensor(known, dtype=answer.dtype, device=answer.device))


@torch.inference_mode()
def next_words(model: Any, forced: Forced) -> Tensor:
    """(B, T, V) log-probabilities, fp32, of each answer token's place."""
    logits = model(**forced.inputs).logits[:, forced.start - 1 : -1]
    return logits.float().log_softmax(-1)


@torch.inference_mode()
def divergence(model: Any, forced: Forced, dense: Tensor, pruner: Pruner) -> tuple[Tensor, Tensor]:
    """Compare the pruned model with the dense one.

    Parameters
    ----------
    dense
        (B, T, V), `next_words` of the dense model.

    Raises
    ------
    CalibrationError
        The dense model's own output is not finite.

    Returns
    -------
    tuple of Tensor, float64, each (B,)
        KL(dense || pruned) in nats, at most 1 for a token, and the share of tokens whose most probable word is the
        dense one; both means over the answer's tokens.
    """
    if dense.isnan().any():
        raise CalibrationError("the dense model itself gives no numbers (NaN) on these samples: try another --dtype")
    with pruner(model):
        pruned = next_words(model, forced)
    kl = (dense.exp() * (dense - pruned)).sum(-1).clamp(0, CAP)
    same = (dense.argmax(-1) == pruned.argmax(-1)).double()
    number = forced.real.sum(-1)
    return tuple((value.double() * forced.real).sum(-1).cpu() / number.cpu() for value in (kl, same))  # type: ignore[return-value]
