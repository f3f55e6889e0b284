"""A slow reference that shares nothing with the engine: the dense model, no cache, dropped tokens hidden by a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

NEVER = 10**6


def hidden_from(report, prompt: Tensor) -> Tensor:
    """(B, L) long, the layer from which each prompt token is gone, from a report and the (B, L) visual mask."""
    gone = torch.full(prompt.shape, NEVER)
    for stage in reversed(report.stages):
        for row, kept in enumerate(stage.kept):
            dropped = prompt[row].clone()
            dropped[kept] = False
            gone[row, dropped] = stage.layer
    return gone


def reference_logits(
    model: PreTrainedModel, batch: dict[str, Tensor], sequences: Tensor, gone: Tensor, compacted: bool = False
) -> Tensor:
    """(B, vocabulary) logits after `sequences`, each visual token hidden from layer `gone` on.

    Parameters
    ----------
    batch
        Inputs of the prompt.
    sequences
        (B, L + t) long, prompt and answer so far.
    gone
        (B, L) long.
    compacted
        Whether answer tokens find the dropped tokens in no layer's cache, not even before the stage.
    """
    rows, length = sequences.shape
    prompt = batch["input_ids"].shape[1]
    new = length - prompt
    mask = torch.cat([batch["attention_mask"], torch.ones(rows, new, dtype=torch.long)], -1)
    gone = torch.cat([gone, torch.full((rows, new), NEVER)], -1)
    extra = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
    if "mm_token_type_ids" in extra:
        extra["mm_token_type_ids"] = torch.nn.functional.pad(extra["mm_token_type_ids"], (0, new))

    def hide(layer: int):
        def hook(module, args, kwargs):
            causal = torch.ones(length, length, dtype=torch.bool).tril()
            visible = (causal & (mask.bool() & (gone > layer))[:, None, None, :]).clone()
            if compacted:
                visible[:, :, prompt:] &= (gone == NEVER)[:, None, None, :]
            visible = visible | torch.eye(
                length, dtype=torch.bool
            )  # a softmax needs something; nobody reads these rows
            hidden = args[0] if args else kwargs["hidden_states"]
            bias = torch.zeros(visible.shape, dtype=hidden.dtype)
            return args, {**kwargs, "attention_mask": bias.masked_fill(~visible, torch.finfo(hidden.dtype).min)}

        return hook

    def run_on_the_kept(layer: int):
        """A layer with a running state, from which no mask can hide a token: each sample's tokens that are left."""

        def forward(hidden_states, attention_mask=None, **kwargs):
            out = torch.zeros_like(hidden_states)
            for row in range(rows):
                there = (mask[row] > 0) & (gone[row] > layer)
                out[row, there] = layers[layer].old_forward(hidden_states[row : row + 1, there], **kwargs)[0]
            return out

        return forward

    layers = model.get_decoder().layers
    states = [number for number, layer in enumerate(layers) if not hasattr(layer, "self_attn")]
    for number in states:
        layers[number].old_forward, layers[number].forward = layers[number].forward, run_on_the_kept(number)
    handles = [
        layer.register_forward_pre_hook(hide(number), with_kwargs=True)
        for number, layer in enumerate(layers)
        if number not in states
    ]
    try:
        with torch.no_grad():
            positions = prompt_positions(model, batch, new)
            return model(
                input_ids=sequences, attention_mask=mask, position_ids=positions, use_cache=False, **extra
            ).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()
        for number in states:
            del layers[number].old_forward, layers[number].forward


def prompt_positions(model: PreTrainedModel, batch: dict[str, Tensor], new: int) -> Tensor:
    """Position ids of prompt and answer: the model's own for the prompt, then one more for each token."""
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    if "mm_token_type_ids" in batch:
        axes, _ = model.model.get_rope_index(
            batch["input_ids"],
            mm_token_type_ids=batch["mm_token_type_ids"],
            image_grid_thw=batch.get("image_grid_thw"),
            video_grid_thw=batch.get("video_grid_thw"),
            attention_mask=batch["attention_mask"],
        )
        positions = torch.cat([positions[None], axes], 0)
    return torch.cat([positions, positions[..., -1:] + 1 + torch.arange(new)], -1)
