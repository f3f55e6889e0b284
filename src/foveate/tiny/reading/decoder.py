"""The decoder layers over one image and many questions: what the model itself computes for each alone, but lean."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from foveate.tiny.reading.packing import PREFIX, Layout

BeforeLayer = Callable[[int, torch.Tensor], "torch.Tensor | None"]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, front: int, layout: Layout, hide: torch.Tensor | None):
    """Causal attention of a front and of many questions, each of which sees the front and itself only.

    Parameters
    ----------
    q
        (B, H, S, E).
    k, v
        (B, G, S, E); heads are grouped as in Llama.
    front
        How many positions the questions share.
    layout
    hide
        Added to all scores of the front's positions, (B, front): -inf-like where they are dropped.
    """
    size, heads, length, width = q.shape
    groups = k.shape[1]
    share = heads // groups
    q = (q * width**-0.5).reshape(size * groups, share, length, width)
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    kf, vf = k[:, :front].contiguous(), v[:, :front].contiguous()
    causal = torch.full((front, front), -1e4, dtype=q.dtype).triu(1)
    scores = (q[:, :, :front].reshape(-1, share * front, width) @ kf.mT).view(-1, share, front, front) + causal
    if hide is not None:
        extra = hide.to(q.dtype).repeat_interleave(groups, 0)[:, None, None]
        scores = scores + extra
    out = [(scores.softmax(-1).flatten(1, 2) @ vf).view(-1, share, front, width)]
    to_front = (q[:, :, front:].reshape(-1, share * (length - front), width) @ kf.mT).view(
        -1, share, length - front, front
    )
    if hide is not None:
        to_front = to_front + extra
    at = 0
    for count, slot in layout:
        end = at + count * slot
        mine = slice(front + at, front + end)
        qs = q[:, :, mine].reshape(-1, share, count, slot, width).transpose(1, 2).reshape(-1, share * slot, width)
        ks, vs = (x[:, mine].reshape(-1, slot, width) for x in (k, v))
        order = torch.full((slot, slot), -1e4, dtype=q.dtype).triu(1)
        own = (qs @ ks.mT).view(-1, count, share, slot, slot) + order
        seen = torch.cat([to_front[:, :, at:end].reshape(-1, share, count, slot, front).transpose(1, 2), own], -1)
        seen = seen.softmax(-1)
        told = (seen[..., front:].reshape(-1, share * slot, slot) @ vs).view(-1, count, share, slot, width)
        far = seen[..., :front].reshape(-1, count * share * slot, front) @ vf
        told = told + far.view(-1, count, share, slot, width)
        out.append(told.transpose(1, 2).reshape(-1, share, count * slot, width))
        at = end
    return torch.cat(out, 2).view(size, heads, length, width)


def decoder_layer(
    hidden: torch.Tensor,
    layer: nn.Module,
    rope: tuple[torch.Tensor, torch.Tensor],
    front: int,
    layout: Layout,
    hide: torch.Tensor | None = None,
) -> torch.Tensor:
    """One Llama decoder layer over (B, S, D) in the dtype of `hidden`; see `attend`."""
    attention, mlp = layer.self_attn, layer.mlp
    config, dtype = attention.config, hidden.dtype
    size, length, width = hidden.shape
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    norm = layer.input_layernorm
    x = F.rms_norm(hidden, (width,), norm.weight.to(dtype), norm.variance_epsilon)
    weight = torch.cat([p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)]).to(dtype)
    x = F.linear(x, weight).view(size, length, heads + 2 * groups, -1).transpose(1, 2)
    cos, sin = rope
    turn, v = x[:, : heads + groups], x[:, heads + groups :]
    half = turn.shape[-1] // 2
    turn = turn * cos + torch.cat([-turn[..., half:], turn[..., :half]], -1) * sin
    x = attend(turn[:, :heads], turn[:, heads:], v, front, layout, hide)
    hidden = hidden + F.linear(x.transpose(1, 2).reshape(size, length, width), attention.o_proj.weight.to(dtype))
    norm = layer.post_attention_layernorm
    x = F.rms_norm(hidden, (width,), norm.weight.to(dtype), norm.variance_epsilon)
    gate, up = F.linear(x, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(dtype)).chunk(2, -1)
    return hidden + F.linear(F.silu(gate) * up, mlp.down_proj.weight.to(dtype))


def run_layers(
    model: nn.Module,
    tokens: torch.Tensor,
    ids: torch.Tensor,
    places: torch.Tensor,
    layout: Layout,
    first: int = 0,
    before: BeforeLayer | None = None,
) -> torch.Tensor:
    """Final hidden states of the text (B, T, D), normed.

    Parameters
    ----------
    model
    tokens
        Projected visual tokens (B, V, D); their dtype is the one that is computed in.
    ids
        Text, (B, T).
    places
        See `positions`.
    layout
    first
        The layer to begin with.
    before
        Called before each layer with its number and the hidden states; what it gives that is not None hides front
        positions from there on, as `attend`'s `hide`.
    """
    language, dtype = model.model.language_model, tokens.dtype
    begin = language.embed_tokens(torch.tensor(PREFIX)).expand(len(ids), -1, -1).to(dtype)
    hidden = torch.cat([begin, tokens, language.embed_tokens(ids).to(dtype)], 1)
    rope = tuple(r[:, None].to(dtype) for r in language.rotary_emb(hidden, places))
    front, hide = len(PREFIX) + tokens.shape[1], None
    for number, layer in enumerate(language.layers):
        if number < first:
            continue
        if before is not None:
            new = before(number, hidden)
            hide = hide if new is None else new
        hidden = decoder_layer(hidden, layer, rope, front, layout, hide)
    last = language.norm
    return F.rms_norm(hidden[:, front:], hidden.shape[-1:], last.weight.to(dtype), last.variance_epsilon)


def logits_at(model: nn.Module, hidden: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Logits (n, vocabulary) at those text positions where `where` (B, T) is true."""
    return F.linear(hidden[where], model.lm_head.weight.to(hidden.dtype)).float()
