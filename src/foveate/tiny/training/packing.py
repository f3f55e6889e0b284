"""Many questions after one image, short and long ones in slots of fitting lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from foveate.tiny.questions import LONG_TASKS, TASKS, Question, ask, cover
from foveate.tiny.scenes import TOKENS, Box
from foveate.tiny.training.pool import Pool
from foveate.tiny.vocabulary import ASSISTANT, BOS, EOS, NEWLINE, USER, WORD_ID, text_ids

PREFIX = [WORD_ID[BOS], WORD_ID[USER]]
NO_TARGET = -100
Layout = tuple[tuple[int, int], ...]
"""How many slots of which length (text positions of a question with all but the last answer token), by length."""
LAYOUT: Layout = ((6, 10), (3, 13), (5, 18), (3, 23), (1, 28))
FEW_OBJECTS: Layout = ((6, 10), (2, 13), (3, 18), (1, 23))
_FUSED = 1000  # front positions from which torch's fused attention is faster on a CPU, its backward counted in
_SHORT = 13  # text positions that a question with a short answer takes at most
# Words that the sentence asks for, not the image: they weigh little in the loss.
_FILLING = {WORD_ID[word] for word in (",", "and", "then", "a", "an", "further")}
_FILLING_WEIGHT, _END_WEIGHT = 0.05, 0.2
# How often each task is asked; the rest once.
SHARES = {
    "count": 1.6,
    "relation": 1.4,
    "shape": 1.3,
    "read": 1.5,
    "exist": 0.8,
    # Few scenes have these, so where they can be asked they are.
    "number": 3.0,
    "spell": 3.0,
    "each": 1.5,
    "row": 1.5,
    "follow": 3.0,
}


def shares_with(changed: tuple[tuple[str, float], ...]) -> dict[str, float]:
    """How often each task is asked, some of them otherwise than `SHARES` says."""
    return {**SHARES, **dict(changed)}


@dataclass
class Packed:
    """B images with V visual tokens each, then T text positions that are divided into slots by `layout`."""

    layout: Layout
    keep: np.ndarray
    """Indices of the visual tokens that are there, int64 (B, V), ascending."""
    ids: np.ndarray
    """int64 (B, T)."""
    targets: np.ndarray
    """int64 (B, T): the next token where it belongs to an answer, else -100."""
    asked: list[tuple[int, int, int, Question]] = field(default_factory=list)
    """Image, first and last text position of the answer, question."""

    def weights(self) -> np.ndarray:
        """How much each target weighs in the loss, float32 (B, T)."""
        out = np.where(self.targets == NO_TARGET, 0.0, 1.0).astype(np.float32)
        out[np.isin(self.targets, list(_FILLING))] = _FILLING_WEIGHT
        out[self.targets == WORD_ID[EOS]] = _END_WEIGHT
        return out


def places(layout: Layout) -> np.ndarray:
    """Place of each text position within its slot, int64 (T,)."""
    return np.concatenate([np.tile(np.arange(length), count) for count, length in layout])


def show(rng: np.random.Generator, boxes: list[Box], count: int, grid: int, rows: int) -> tuple[np.ndarray, set[Box]]:
    """Which `count` of rows * grid tokens to show, and the boxes that are wholly shown."""
    if count == rows * grid:
        return np.ones(count, dtype=bool), set(boxes)
    shown, whole = np.zeros(rows * grid, dtype=bool), set()
    for number in rng.permutation(len(boxes)):
        box = boxes[number]
        touched = shown | (cover([box], grid, rows) > 0)
        if touched.sum() <= count:
            shown = touched
            whole.add(box)
    rest = np.flatnonzero(~shown)
    shown[rng.permutation(rest)[: count - int(shown.sum())]] = True
    return shown, whole


def written(question: Question) -> tuple[list[int], list[int]]:
    """Ids of the prompt after the image, and of the answer with its end."""
    head = [WORD_ID[NEWLINE], *text_ids(question.text), WORD_ID[ASSISTANT]]
    return head, [*text_ids(question.answer), WORD_ID[EOS]]


def empty(size: int, visual: int, layout: Layout) -> Packed:
    """B images with V visual tokens and nothing asked yet."""
    text = sum(count * length for count, length in layout)
    return Packed(
        layout,
        np.zeros((size, visual), dtype=np.int64),
        np.zeros((size, text), dtype=np.int64),
        np.full((size, text), NO_TARGET, dtype=np.int64),
    )


def pack(
    rng: np.random.Generator,
    pool: Pool,
    chosen: np.ndarray,
    visual: int | None = None,
    layout: Layout = LAYOUT,
    shares: dict[str, float] = SHARES,
) -> Packed:
    """Ask as many questions about each selected scene as there are slots for.

    Parameters
    ----------
    rng
    pool
    chosen
        Numbers of the scenes, (B,).
    visual
        Number of visual tokens V; by default all, with fewer some objects are shown whole and the rest is drawn.
    layout
    shares
        How often each task is asked; 1 by default.
    """
    weight = np.array([shares.get(task, 1.0) for task in TASKS])
    out = empty(len(chosen), visual or pool.grid**2, layout)
    for b, number in enumerate(chosen):
        scene = pool.scene(int(number))
        boxes = [thing.box for thing in scene.objects]
        shown, whole = show(rng, boxes, out.keep.shape[1], pool.grid, pool.grid)
        out.keep[b] = np.flatnonzero(shown)
        asked = drawn(rng, TASKS, weight, sum(count for count, _ in layout), partial(ask, rng, scene))
        fill(out, b, asked, whole, complete=len(whole) == len(boxes))
    return out


def drawn(
    rng: np.random.Generator,
    tasks: tuple[str, ...],
    weight: np.ndarray,
    slots: int,
    made: Callable[[str], Question | None],
) -> Iterator[Question | None]:
    """Questions of tasks drawn with a weight, five for each slot."""
    for number in rng.choice(len(tasks), 5 * slots, p=weight / weight.sum()):
        yield made(tasks[number])


def fill(
    out: Packed,
    b: int,
    asked: Iterator[Question | None],
    whole: set[Box],
    complete: bool,
    long: tuple[str, ...] = LONG_TASKS,
    short: int = _SHORT,
) -> None:
    """Write questions about image `b` into the slots until they are full.

    Parameters
    ----------
    out
    b
    asked
    whole
        The boxes that are wholly shown: other ones are not asked about.
    complete
        Whether that is all of them.
    long
        Tasks with long answers.
    short
        Text positions of the longest slot that a question with a short answer may take.
    """
    starts, free, at = [], [], 0
    for count, length in out.layout:
        starts.append(at)
        free.append(count)
        at += count * length
    texts: set[str] = set()
    for question in asked:
        if question is None or question.text in texts or any(box not in whole for box in question.boxes):
            continue
        if not question.boxes and not complete:
            continue  # "none" is only true where everything is shown
        head, tail = written(question)
        length = len(head) + len(tail) - 1
        fits = [g for g, (_, room) in enumerate(out.layout) if free[g] and room >= length]
        # Slots for long answers stay free for them.
        if not fits or (question.task not in long and out.layout[fits[0]][1] > short):
            continue
        group = fits[0]
        start = starts[group] + (out.layout[group][0] - free[group]) * out.layout[group][1]
        free[group] -= 1
        texts.add(question.text)
        end = start + len(head) - 1
        out.ids[b, start : start + length] = head + tail[:-1]
        out.targets[b, end : start + length] = tail
        out.asked.append((b, end, start + length, question))
        if not any(free):
            return


def single(questions: list[Question]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and targets of each question alone, as `pack` writes them into a slot."""
    out = []
    for question in questions:
        head, tail = written(question)
        targets = np.full(len(head) + len(tail) - 1, NO_TARGET, dtype=np.int64)
        targets[len(head) - 1 :] = tail
        out.append((np.array(head + tail[:-1]), targets))
    return out


def positions(keep: torch.Tensor, layout: Layout, tokens: int = TOKENS) -> torch.Tensor:
    """Position ids (B, 2 + V + T) as in a prompt with all `tokens` visual tokens and one question."""
    front = torch.arange(len(PREFIX)).expand(len(keep), -1)
    text = torch.from_numpy(places(layout)).expand(len(keep), -1) + len(PREFIX) + tokens
    return torch.cat([front, keep + len(PREFIX), text], 1)


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
    if hide is not None:
        extra = hide.to(q.dtype).repeat_interleave(groups, 0)[:, None, None]
    if hide is None and front > _FUSED:
        each = (x[:, None].expand(-1, share, -1, -1) for x in (kf, vf))
        out = [F.scaled_dot_product_attention(q[:, :, :front], *each, is_causal=True, scale=1.0)]
    else:
        causal = torch.full((front, front), -1e4, dtype=q.dtype, device=q.device).triu(1)
        scores = (q[:, :, :front].reshape(-1, share * front, width) @ kf.mT).view(-1, share, front, front) + causal
        scores = scores if hide is None else scores + extra
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
        order = torch.full((slot, slot), -1e4, dtype=q.dtype, device=q.device).triu(1)
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
    begin = language.embed_tokens(torch.tensor(PREFIX, device=ids.device)).expand(len(ids), -1, -1).to(dtype)
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
