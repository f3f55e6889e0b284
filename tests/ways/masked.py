"""The dense model with the dropped tokens masked, for one forward pass: with labels, gradients, or embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel


@contextlib.contextmanager
def masked(model: PreTrainedModel, padding: Tensor, gone: Tensor) -> Iterator[None]:
    """While open, each prompt token is hidden from layer `gone` (B, L) on; `padding` (B, L) is the attention mask."""
    length = padding.shape[1]
    itself = torch.eye(length, dtype=torch.bool)  # a softmax needs something; nobody reads these rows

    def hide(number: int):
        def hook(module, args, kwargs):
            seen = torch.ones(length, length, dtype=torch.bool).tril()
            seen = (seen & (padding.bool() & (gone > number))[:, None, None, :]) | itself
            hidden = args[0] if args else kwargs["hidden_states"]
            bias = torch.zeros(seen.shape, dtype=hidden.dtype)
            return args, {**kwargs, "attention_mask": bias.masked_fill(~seen, torch.finfo(hidden.dtype).min)}

        return hook

    layers = model.get_decoder().layers
    handles = [layer.register_forward_pre_hook(hide(number), with_kwargs=True) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
