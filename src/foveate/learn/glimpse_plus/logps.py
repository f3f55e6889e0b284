"""Log-probabilities of given answers, computed as `generate` computes them: prefill, then the answer on the cache.

In one pass over prompt and answer the answer would see, in the layers before the cut, visual tokens that are no longer
in the cache while generating. So the prompt runs first, with a KV cache that the pruner cuts, and the answer continues
on it; gradients flow through the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from foveate.engine.arguments import with_cache
from foveate.learn.states import refuse_states

PER_TOKEN = ("token_type_ids", "mm_token_type_ids")  # inputs of the processor with one entry a token


def answer_logps(
    model: Any, input_ids: Tensor, attention_mask: Tensor, answer: int, temperature: float = 1.0, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token and the entropy of the distribution it was drawn from.

    Parameters
    ----------
    model
        A vision-language model, with or without an adapter; an attached pruner works here as while generating.
    input_ids, attention_mask
        (B, P + C) long, the prompt padded on the left, then the answer padded on the right.
    answer
        C, length of the answers.
    temperature
        The logits are divided by it, as while sampling.
    inputs
        What else the processor gave, for the prompt.

    Returns
    -------
    tuple of Tensor
        Twice (B, C) float32; padding holds numbers without meaning. The entropy carries no gradient.

    Raises
    ------
    UnsupportedModelError
        For a model with linear attention or convolutions in its decoder.
    """
    refuse_states(getattr(model, "module", model))  # DistributedDataParallel has no config
    length = input_ids.shape[1] - answer
    inputs = {name: value[:, :length] if name in PER_TOKEN else value for name, value in inputs.items()}
    prompt, mask = input_ids[:, :length], attention_mask[:, :length]
    positions = _positions(model, prompt, mask, inputs)
    cache = DynamicCache()
    first = model(
        input_ids=prompt,
        attention_mask=mask,
        position_ids=positions,
        **with_cache(model, cache),
        use_cache=True,
        logits_to_keep=1,
        **inputs,
    )
    logits = first.logits[:, -1:]
    if answer > 1:
        words = input_ids[:, length:-1]
        # a sampled placeholder is a word
        types = {name: torch.zeros_like(words) for name in PER_TOKEN if inputs.get(name) is not None}
        rest = model(
            input_ids=words,
            attention_mask=attention_mask[:, :-1],
            position_ids=positions[..., -1:] + torch.arange(1, answer, device=positions.device),
            **with_cache(model, cache),
            use_cache=True,
            **types,
        )
        logits = torch.cat([logits, rest.logits], 1)
    return _score(logits, input_ids[:, length:], temperature)


def _positions(model: Any, prompt: Tensor, mask: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Position ids of a prompt as `generate` makes them: (B, P), or (3, B, P) where images have rows and columns.

    Made here, since Qwen's own way to go on after a prompt keeps state, and takes one token at a time.
    """
    plain = (mask.cumsum(-1) - 1).clamp(min=0)
    owner = next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)
    if owner is None:
        return plain
    if not any(inputs.get(name) is not None for name in ("image_grid_thw", "video_grid_thw")):
        return plain.expand(3, -1, -1)
    known = inspect.signature(owner.get_rope_index).parameters
    others = {name: value for name, value in inputs.items() if name in known}
    return cast("Tensor", owner.get_rope_index(input_ids=prompt, attention_mask=mask, **others)[0])


def _score(logits: Tensor, words: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = logits.float() / temperature
    everything = logits.logsumexp(-1)
    logps = logits.gather(-1, words[..., None])[..., 0] - everything
    with torch.no_grad():
        entropy = everything - (logits.softmax(-1) * logits).sum(-1)
    return logps, entropy
