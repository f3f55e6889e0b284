"""How far a pruned model's next words are from the dense model's, on the dense model's own answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.learn.btp.samples import Sample
from foveate.learn.errors import CalibrationError
from foveate.measure.eval.scoring import Forced, after_prompts, next_words
from foveate.measure.loading import LoadedModel
from foveate.pruners import Pruner

CAP = 1.0  # nats that one word counts at most: a few that went quite another way must not outweigh all the others


@torch.inference_mode()
def dense_answer(loaded: LoadedModel, samples: Sequence[Sample], tokens: int) -> Tensor:
    """(B, T) ids of the first tokens, at most `tokens`, of the dense model's greedy answers."""
    inputs = _inputs(loaded, samples)
    whole: Tensor = loaded.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return whole[:, inputs["input_ids"].shape[1] :].clone()


@torch.inference_mode()
def force(loaded: LoadedModel, samples: Sequence[Sample], answer: Tensor) -> Forced:
    """Put the answers (B, T) after the prompts."""
    return after_prompts(_inputs(loaded, samples), answer, loaded.model.generation_config.eos_token_id)


def _inputs(loaded: LoadedModel, samples: Sequence[Sample]) -> dict[str, Any]:
    return dict(loaded.inputs([sample.question for sample in samples], [[sample.image()] for sample in samples]))


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
