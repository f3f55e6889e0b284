"""Stage B: the language model learns to answer, on the frozen tower's cached tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from foveate.tiny.questions import TASKS
from foveate.tiny.training.packing import EVEN, NO_TARGET, PREFIX, SHARES, SLOT, TOKENS, Packed, masks, pack, positions
from foveate.tiny.training.pool import Pool
from foveate.tiny.training.vision_stage import LABEL_IDS, see, to_pixels
from foveate.tiny.vocabulary import EOS, WORD_ID

# Layers (from 0) whose attention is led to the evidence early in training.
LED_LAYERS = (4, 5, 6)


@dataclass(frozen=True)
class Phase:
    """A part of stage B: up to which share of the steps, how many objects and visual tokens, chance of few tokens."""

    until: float
    most_objects: int
    visual: int
    few: float = 0.15
    shares: tuple[float, ...] = SHARES
    """How often each task is asked, in the order of `TASKS`."""


PHASES = (
    Phase(3 / 14, 5, 64),
    Phase(0.5, 14, 112),
    # what is learned last is asked most
    Phase(1.0, 14, TOKENS, shares=(0.9, 0.8, 0.7, 1.3, 1.1, 3.0, 0.9, 2.4, 0.7)),
)


@torch.no_grad()
def cache_tokens(model: nn.Module, pool: Pool, path: Path | None, device: torch.device) -> torch.Tensor:
    """Projected visual tokens of all scenes of a pool, bfloat16 (N, 196, D), kept in `path` if given."""
    if path is not None and path.is_file():
        return torch.load(path, weights_only=True, mmap=True)
    parts = []
    for i in range(0, len(pool), 64):
        parts.append(see(model, to_pixels(pool.images[i : i + 64], device))[0].cpu())
    out = torch.cat(parts)
    if path is not None:
        torch.save(out, path)
    return out


class LanguageBatches:
    """Batches of stage B by step number; scenes and questions depend on the seed and the step alone."""

    def __init__(self, pool: Pool, batch: int, seed: int, steps: int, phases: tuple[Phase, ...] = PHASES):
        self.pool, self.batch, self.seed, self.steps, self.phases = pool, batch, seed, steps, phases
        sizes = np.array([len(objects) for objects in pool.objects])
        self.members = [np.flatnonzero((sizes <= p.most_objects) & (sizes > 0)) for p in phases]

    def __call__(self, step: int) -> tuple[np.ndarray, Packed]:
        """Scene numbers (B,) and the packed questions of a step."""
        rng = np.random.default_rng([7, self.seed, step])
        which = next(i for i, p in enumerate(self.phases) if step < p.until * self.steps or p is self.phases[-1])
        chosen = rng.choice(self.members[which], self.batch, replace=False)
        phase = self.phases[which]
        return chosen, pack(rng, self.pool, chosen, phase.visual, few=phase.few, shares=phase.shares)


def gather(cache: torch.Tensor, chosen: np.ndarray, packed: Packed) -> torch.Tensor:
    """The cached tokens that are shown, (B, V, D)."""
    return cache[torch.from_numpy(chosen)[:, None], torch.from_numpy(packed.keep)]


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: tuple[torch.Tensor, torch.Tensor], slot: int
) -> torch.Tensor:
    """Causal attention (B, H, S, E) of one front and many questions that see the front and themselves only.

    It skips what the mask of the whole would hide, and plain matrix products beat the fused kernel on a CPU.
    """
    among, hidden = mask
    size, heads, length, width = q.shape
    front = among.shape[-1]
    q = (q * width**-0.5).flatten(0, 1)
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    kf, vf = k[:, :front], v[:, :front]
    scores = (q[:, :front] @ kf.mT).unflatten(0, (size, heads)) + among[:, None]
    seen = scores.softmax(-1).flatten(0, 1) @ vf
    text = length - front
    own_q, own_k, own_v = (x[:, front:].reshape(-1, slot, width) for x in (q, k, v))
    causal = torch.full((slot, slot), -1e4, dtype=q.dtype, device=q.device).triu(1)
    to_front = (q[:, front:] @ kf.mT).unflatten(0, (size, heads)) + hidden[:, None]
    to_own = (own_q @ own_k.mT + causal).view(size, heads, text, slot)
    share = torch.cat([to_front, to_own], -1).softmax(-1).flatten(0, 1)
    told = (share[..., front:].reshape(-1, slot, slot) @ own_v).view(size * heads, text, width)
    told = told + share[..., :front] @ vf
    return torch.cat([seen, told], 1).view(size, heads, length, width)


def decoder_layer(
    hidden: torch.Tensor,
    weights: tuple[torch.Tensor, ...],
    mask: tuple[torch.Tensor, torch.Tensor],
    rope: tuple[torch.Tensor, torch.Tensor],
    heads: int,
    slot: int = SLOT,
) -> torch.Tensor:
    """One Llama decoder layer as a function of its weights.

    Parameters
    ----------
    hidden
        (B, S, D): the front (2 + V positions), then Q slots of `slot` positions.
    weights
        In the order of `layer_weights`.
    mask
        See `masks`.
    rope
        Cosines and sines, (B, S, D / heads).
    heads, slot
    """
    norm1, query, key, value, output, norm2, gate, up, down = (w.to(hidden.dtype) for w in weights)
    size, length, width = hidden.shape
    x = F.rms_norm(hidden, (width,), norm1, 1e-6)
    q, k, v = F.linear(x, torch.cat([query, key, value])).view(size, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    cos, sin = (r[:, None].to(hidden.dtype) for r in rope)
    half = q.shape[-1] // 2
    q = q * cos + torch.cat([-q[..., half:], q[..., :half]], -1) * sin
    k = k * cos + torch.cat([-k[..., half:], k[..., :half]], -1) * sin
    x = attend(q, k, v, mask, slot)
    hidden = hidden + F.linear(x.transpose(1, 2).reshape(size, length, width), output)
    x = F.rms_norm(hidden, (width,), norm2, 1e-6)
    gated = F.silu(F.linear(x, gate)) * F.linear(x, up)
    return hidden + F.linear(gated, down)


def layer_weights(layer: nn.Module) -> tuple[torch.Tensor, ...]:
    """The weights of a Llama layer in the order that `decoder_layer` wants."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return (
        layer.input_layernorm.weight,
        *(p.weight for p in projections),
        layer.post_attention_layernorm.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
    )


def run_layers(
    model: nn.Module,
    tokens: torch.Tensor,
    ids: torch.Tensor,
    mask: tuple[torch.Tensor, torch.Tensor],
    places: torch.Tensor,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits (B, Q, SLOT, vocabulary), and the input of each led layer, (B, S, D) each.

    The dtype of `mask` is the one that is computed in.
    """
    language, dtype = model.model.language_model, mask[0].dtype
    front = language.embed_tokens(torch.tensor(PREFIX, device=ids.device)).expand(len(ids), -1, -1)
    text = language.embed_tokens(ids.flatten(1))
    hidden = torch.cat([front.to(dtype), tokens.to(dtype), text.to(dtype)], 1)
    rope = language.rotary_emb(hidden, places)
    heads = language.config.num_attention_heads
    led = []
    for index, layer in enumerate(language.layers):
        if index in LED_LAYERS:
            led.append(hidden)
        hidden = decoder_layer(hidden, layer_weights(layer), mask, rope, heads, ids.shape[2])
    last = language.norm(hidden[:, len(PREFIX) + tokens.shape[1] :]).to(dtype)
    return F.linear(last, model.lm_head.weight.to(dtype)).view(*ids.shape, -1), led


def evidence_loss(
    model: nn.Module,
    led: list[torch.Tensor],
    mask: tuple[torch.Tensor, torch.Tensor],
    places: torch.Tensor,
    packed: Packed,
) -> torch.Tensor:
    """How little the last prompt tokens look at their evidence boxes in the led layers: mean of -log(share)."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    language, device = model.model.language_model, places.device
    size, slots = packed.ends.shape
    front = mask[1].shape[-1]
    ends = torch.from_numpy(packed.ends).to(device)
    rows = front + torch.arange(slots, device=device) * SLOT + ends  # (B, Q)
    later = torch.arange(SLOT, device=device) > ends[..., None]  # (B, Q, SLOT)
    picture, slot = (torch.tensor(v, device=device) for v in zip(*packed.box_slot, strict=True))
    box_tokens = torch.from_numpy(np.stack(packed.box_tokens)).to(device)
    boxes = torch.zeros(size, slots, device=device).index_put_((picture, slot), torch.ones(1, device=device), True)
    weight = 1 / boxes[picture, slot]
    loss = torch.zeros((), device=device)
    for index, hidden in zip(LED_LAYERS, led, strict=True):
        layer = language.layers[index]
        attention, x = layer.self_attn, layer.input_layernorm(hidden).float()
        shape = (*x.shape[:2], -1, attention.head_dim)
        query = attention.q_proj(x).view(shape).transpose(1, 2)
        key = attention.k_proj(x).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *language.rotary_emb(x, places))
        query = query.gather(2, rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
        to_front = query @ key[:, :, :front].mT + mask[1][:, None].float()
        own = key[:, :, front:].unflatten(2, (slots, SLOT))
        to_own = (query[..., None, :] @ own.mT)[..., 0, :].masked_fill(later[:, None], -1e4)
        share = (torch.cat([to_front, to_own], -1) * attention.scaling).softmax(-1)[..., len(PREFIX) : front].mean(1)
        on_box = (share[picture, slot] * box_tokens).sum(-1)
        loss = loss - (torch.log(on_box + 1e-3) * weight).sum() / weight.sum() / len(led)
    return loss


def answer_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the answers; the end token counts a tenth, it is easy."""
    flat = targets.flatten()
    asked = flat != NO_TARGET
    each = F.cross_entropy(logits.flatten(0, -2)[asked].float(), flat[asked], reduction="none")
    weight = torch.where(flat[asked] == WORD_ID[EOS], 0.1, 1.0)
    return (each * weight).sum() / weight.sum()


def freeze_label_words(model: nn.Module) -> None:
    """Keep the embeddings that stage A aligned the visual tokens with: their gradient is dropped."""
    embedding = model.model.language_model.embed_tokens.weight
    fixed = torch.cat(LABEL_IDS)
    embedding.register_hook(lambda grad: grad.index_fill(0, fixed.to(grad.device), 0.0))


@torch.no_grad()
def check_language(
    model: nn.Module, cache: torch.Tensor, pool: Pool, device: torch.device, scenes: int = 64
) -> dict[str, float]:
    """Share of held-out questions answered exactly (all answer tokens and the end), per task and their mean."""
    right: dict[str, list[bool]] = {task: [] for task in TASKS}
    rng = np.random.default_rng(123)
    for first in range(0, min(scenes, len(pool)), 16):
        chosen = np.arange(first, min(first + 16, scenes, len(pool)))
        packed = pack(rng, pool, chosen, shares=EVEN)
        logits, _ = run_layers(model, *to_device(gather(cache, chosen, packed), packed, device))
        targets = torch.from_numpy(packed.targets).to(device)
        good = ((logits.argmax(-1) == targets) | (targets == NO_TARGET)).all(-1).cpu()
        for b, slot, task in packed.tasks:
            right[task].append(bool(good[b, slot]))
    out = {task: 100 * float(np.mean(values)) for task, values in right.items() if values}
    return {**out, "mean": float(np.mean(list(out.values())))}


def to_device(tokens: torch.Tensor, packed: Packed, device: torch.device) -> tuple:
    """The inputs of `run_layers`: tokens, ids, masks, positions."""
    mask = masks(torch.from_numpy(packed.visible).to(device), torch.bfloat16)
    places = positions(torch.from_numpy(packed.keep).to(device), packed.ids.shape[1])
    return tokens.to(device), torch.from_numpy(packed.ids).to(device), mask, places
