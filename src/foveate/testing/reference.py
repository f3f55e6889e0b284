"""A slow reference that shares nothing with the engine: the dense model, no cache, dropped tokens hidden by a mask."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.families import FAMILIES, Family
from foveate.testing.one_by_one import without_the_dropped

NEVER = 10**6


def hidden_from(report: Any, visual: Tensor) -> Tensor:
    """(B, L) long, the layer from which each prompt token is gone, `NEVER` for those that stay.

    Parameters
    ----------
    report
        `Handle.report` of a pruned run, or one of its prefills.
    visual
        (B, L) bool, the visual tokens of the prompt; not its last token, which always stays.
    """
    gone = torch.full(visual.shape, NEVER)
    for stage in reversed(report.stages):
        for row, kept in enumerate(stage.kept):
            dropped = visual[row].cpu().clone()
            dropped[kept] = False
            gone[row, dropped] = stage.layer
    return gone


def reference_logits(
    model: nn.Module,
    inputs: Mapping[str, Any],
    sequences: Tensor,
    gone: Tensor,
    compacted: bool = False,
    family: Family | None = None,
    stages: Sequence[Any] = (),
) -> Tensor:
    """Logits of a dense run in which each visual token is hidden from the layer that drops it on.

    One forward pass over prompt and answer, without a cache. No row sees a later one, so the row of each answer token
    is what a run that has come so far would give. Hiding goes on top of the mask that the model itself gives each
    layer, so sliding windows and images that see themselves in both directions stay as they are. A layer that takes
    no attention mask (linear attention, a convolution) runs once for each sample on the tokens that are left there.

    Parameters
    ----------
    model
        Not attached. With a backend that does not take any mask, such as flash attention, its decoder runs as "sdpa".
    inputs
        Of the prompt, left padded.
    sequences
        (B, L + t) long, prompt and answer so far; t may be 0.
    gone
        (B, L) long, as `hidden_from` gives it.
    compacted
        Whether answer tokens find the dropped tokens in no layer's cache, not even before the stage.
    family
        Where the parts of the model are; by default where most models have them.
    stages
        Those of the report, for what a method merged.

    Returns
    -------
    Tensor
        (B, t + 1, vocabulary), after the prompt and after each token of the answer.
    """
    family = family or FAMILIES.get(getattr(model.config, "model_type", ""))
    rows, prompt = inputs["input_ids"].shape
    new = sequences.shape[1] - prompt
    device = sequences.device
    given = inputs.get("attention_mask")
    real = torch.ones(rows, prompt, dtype=torch.long, device=device) if given is None else given
    mask = torch.cat([real, real.new_ones(rows, new)], -1)
    left = torch.cat([gone.to(device), torch.full((rows, new), NEVER, device=device)], -1)
    extra = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    for name, value in extra.items():
        if name.endswith("token_type_ids"):
            extra[name] = torch.nn.functional.pad(value, (0, new), value=0 if family is None else family.answer_type)
    parameters = inspect.signature(model.forward).parameters
    if "logits_to_keep" in parameters:
        extra["logits_to_keep"] = new + 1
    positions = prompt_positions(model, inputs, new)
    hiding = _hidden(model, mask.bool(), left, prompt, compacted, family, stages)
    with _takes_any_mask(model), hiding, torch.no_grad():
        output = model(input_ids=sequences, attention_mask=mask, position_ids=positions, use_cache=False, **extra)
    return output.logits[:, -new - 1 :]


def prompt_positions(model: nn.Module, inputs: Mapping[str, Any], new: int) -> Tensor:
    """Position ids of prompt and answer: the model's own for the prompt, then one more for each token.

    Those of the prompt count its tokens from the left padding on. A model with several rotary axes (M-RoPE) has
    `get_rope_index`, which is asked for them; the count comes first then, as a row of its own.

    Returns
    -------
    Tensor
        (B, L + new) long, or (1 + axes, B, L + new).
    """
    ids = inputs["input_ids"]
    mask = inputs["attention_mask"] if inputs.get("attention_mask") is not None else torch.ones_like(ids)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    rope_index = getattr(getattr(model, "base_model", model), "get_rope_index", None)
    takes = {} if rope_index is None else inspect.signature(rope_index).parameters
    if rope_index is not None and ("mm_token_type_ids" in inputs or "mm_token_type_ids" not in takes):
        known = {**inputs, "attention_mask": mask, **_of_sounds(inputs)}
        axes, _ = rope_index(**{name: value for name, value in known.items() if name in takes})
        positions = torch.cat([positions[None], axes], 0)
    return torch.cat([positions, positions[..., -1:] + 1 + torch.arange(new, device=ids.device)], -1)


def _of_sounds(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a model that hears calls otherwise where it makes positions: lengths of sounds, time between frames."""
    heard = inputs.get("feature_attention_mask")
    return {
        "audio_seqlens": None if heard is None else heard.sum(-1),
        "second_per_grids": inputs.get("video_second_per_grid"),
    }


@contextlib.contextmanager
def _takes_any_mask(model: Any) -> Iterator[None]:
    config = model.get_decoder().config
    before = config._attn_implementation
    if before not in ("sdpa", "eager"):
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


@contextlib.contextmanager
def _hidden(
    model: Any,
    real: Tensor,
    gone: Tensor,
    prompt: int,
    compacted: bool,
    family: Family | None,
    stages: Sequence[Any] = (),
) -> Iterator[None]:
    """Every decoder layer of `model` sees what is left there of (B, L + t) tokens."""
    length = real.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=real.device)

    def visible(layer: int, own: Any) -> Tensor:
        seen = (real & (gone > layer))[:, None, None, :].expand(-1, 1, length, -1).clone()
        seen[..., prompt:] &= causal[:, prompt:]  # while the prompt is read there is no answer yet
        if compacted:
            seen[:, :, prompt:] &= (gone == NEVER)[:, None, None, :]
        return seen if isinstance(own, Tensor) and own.ndim == 4 else seen & causal

    def hide(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            hidden = args[0] if args else kwargs["hidden_states"]
            lowest = torch.finfo(hidden.dtype).min
            own = kwargs.get("attention_mask")
            rows = hidden.shape[-2]  # of the last tokens only, where a decoder hands its last layers no others
            seen = visible(layer, own)[..., -rows:, :]
            bias = torch.zeros(seen.shape, dtype=hidden.dtype, device=seen.device)
            if isinstance(own, Tensor) and own.ndim == 4:
                own = own[..., :length].to(seen.device)
                shown = own if own.dtype == torch.bool else own > lowest / 2
                seen = seen & shown
                if own.dtype != torch.bool:
                    bias = own.masked_fill(~shown, 0)
            # a softmax needs something to see; nobody reads the rows that see nothing but themselves
            bias = bias.masked_fill(~(seen | itself[-rows:]), lowest)
            return args, {**kwargs, "attention_mask": bias.to(hidden.device)}

        return hook

    parts = None if family is None else family.parts(model)
    layers = model.get_decoder().layers if parts is None else parts.layers
    attention = [getattr(layer, "self_attn", None) for layer in layers] if parts is None else parts.attention
    handles = []
    try:
        for stage in stages:
            if stage.merged:
                merging = partial(_merge_one_by_one, stage, length)
                handles.append(layers[stage.layer].register_forward_pre_hook(merging, with_kwargs=True))
        for number, layer in enumerate(layers):
            if attention[number] is not None:
                handles.append(layer.register_forward_pre_hook(hide(number), with_kwargs=True))
            else:
                handles.append(without_the_dropped(layer, real & (gone > number)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _merge_one_by_one(stage: Any, length: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Before the layer of a stage, add to each survivor what went into it, one survivor after another."""
    hidden = args[0] if args else kwargs["hidden_states"]
    merged = hidden.clone()
    missing = length - hidden.shape[-2]  # a decoder may hand its last layers the last tokens only
    for row, sample in enumerate(stage.merged):
        for survivor in sample.into.unique().tolist():
            mine = sample.into == survivor
            states = hidden[..., row, sample.positions[mine].to(hidden.device) - missing, :].float()
            weights = sample.weights[mine].to(hidden.device).float()
            total = hidden[..., row, survivor - missing, :].float() + (states * weights[:, None]).sum(-2)
            merged[..., row, survivor - missing, :] = total / (1 + weights.sum()) if sample.how == "average" else total
    return ((merged, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": merged})
