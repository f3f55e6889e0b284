"""Many questions behind one picture: batches for the language stage, with tokens left out on purpose."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from .pool import Pool
from .questions import TASKS, ask, overlap
from .scenes import Scene
from .vocabulary import ASSISTANT, BOS, EOS, NEWLINE, USER, WORD_ID, question_ids

PREFIX = [WORD_ID[BOS], WORD_ID[USER]]
TOKENS = 196
NO_TARGET = -100
# Chance of each task in training: what is learned last is asked most.
SHARES = dict(zip(TASKS, (1.0, 0.8, 0.8, 1.6, 1.3, 2.0, 1.0, 1.8, 1.0), strict=True))
_P = np.array([SHARES[task] for task in TASKS]) / sum(SHARES.values())


@dataclass
class Packed:
    """A batch of B pictures, V visual tokens each, with T text positions of several questions each."""

    keep: np.ndarray
    """Indices of the visual tokens that are there, int64 (B, V), ascending."""
    visible: np.ndarray
    """bool (B, V); False where ``keep`` is only padding."""
    ids: np.ndarray
    targets: np.ndarray
    """int64 (B, T): the next token where it belongs to an answer, else -100."""
    block: np.ndarray
    """int64 (B, T): number of the question, from 1; 0 is padding."""
    place: np.ndarray
    """int64 (B, T): position within the question."""
    ends: list[tuple[int, int]] = field(default_factory=list)
    """Picture and text position of each question's last prompt token."""
    spans: list[int] = field(default_factory=list)
    """Number of target tokens of each question."""
    tasks: list[str] = field(default_factory=list)
    box_end: list[int] = field(default_factory=list)
    """For each evidence box, which of ``ends`` it belongs to."""
    box_tokens: list[np.ndarray] = field(default_factory=list)
    """For each evidence box, its tokens among the V, bool (V,)."""


def _choose(
    rng: np.random.Generator, scene: Scene, count: int, few: float
) -> tuple[np.ndarray, dict[tuple, np.ndarray]]:
    """Which tokens to show, and the boxes (with their tokens) that are wholly shown."""
    covers = {thing.box: overlap([thing.box]) for thing in scene.objects}
    order = [scene.objects[i].box for i in rng.permutation(len(scene.objects))]
    show = np.zeros(TOKENS, dtype=bool)
    whole: dict[tuple, np.ndarray] = {}
    if rng.random() < few:  # the evidence and little else
        for box in order[: int(rng.choice([1, 1, 1, 2, 3]))]:
            whole[box] = covers[box] >= 0.1
            show |= whole[box]
        if rng.random() < 0.5:
            show |= rng.random(TOKENS) < rng.choice([0.02, 0.1, 0.22])
        if show.sum() <= count:
            return show, whole
        show[:] = False
        whole.clear()
    for box in order:
        touched = show | (covers[box] > 0)
        if touched.sum() <= count:
            show = touched
            whole[box] = covers[box] >= 0.1
    rest = np.flatnonzero(~show)
    show[rng.permutation(rest)[: count - int(show.sum())]] = True
    return show, whole


def pack(
    rng: np.random.Generator,
    pool: Pool,
    chosen: np.ndarray,
    visual: int = TOKENS,
    text: int = 192,
    few: float = 0.0,
    even: bool = False,
) -> Packed:
    """Ask as many questions as fit about each chosen scene.

    Parameters
    ----------
    rng : numpy.random.Generator
    pool : Pool
    chosen : numpy.ndarray
        Numbers of the scenes, (B,).
    visual, text : int
        Number of visual tokens V and of text positions T.
    few : float
        Chance that a picture shows only the tokens of a few objects.
    even : bool
        Ask the tasks equally often, for evaluation.
    """
    size = len(chosen)
    out = Packed(
        np.zeros((size, visual), dtype=np.int64),
        np.zeros((size, visual), dtype=bool),
        np.zeros((size, text), dtype=np.int64),
        np.full((size, text), NO_TARGET, dtype=np.int64),
        np.zeros((size, text), dtype=np.int64),
        np.zeros((size, text), dtype=np.int64),
    )
    for b, number in enumerate(chosen):
        scene = pool.scene(int(number))
        show, whole = _choose(rng, scene, visual, few)
        kept = np.flatnonzero(show)
        out.keep[b, : len(kept)] = kept
        out.visible[b, : len(kept)] = True
        at, asked, misses = 0, set(), 0
        while misses < 40 and text - at > 8:
            task = TASKS[int(rng.choice(len(TASKS), p=None if even else _P))]
            question = ask(rng, scene, task)
            shown = question is not None and all(box in whole for box in question.boxes)
            if not shown or question.text in asked or (not question.boxes and len(whole) < len(scene.objects)):
                misses += 1
                continue
            head = [WORD_ID[NEWLINE], *question_ids(question.text), WORD_ID[ASSISTANT]]
            tail = [*question_ids(question.answer), WORD_ID[EOS]]
            length = len(head) + len(tail) - 1
            if at + length > text:
                break
            asked.add(question.text)
            end = at + len(head) - 1
            out.ids[b, at : at + length] = head + tail[:-1]
            out.targets[b, end : at + length] = tail
            out.block[b, at : at + length] = len(asked)
            out.place[b, at : at + length] = np.arange(length)
            for box in question.boxes if question.answer != "no" else ():
                out.box_end.append(len(out.ends))
                row = np.zeros(visual, dtype=bool)
                row[: len(kept)] = whole[box][kept]
                out.box_tokens.append(row)
            out.ends.append((b, end))
            out.spans.append(len(tail))
            out.tasks.append(task)
            at += length
    return out


def attention_mask(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask (B, 1, S, S), S = 2 + V + T: causal, and a question sees the picture and itself only."""
    size, visual = packed.keep.shape
    front = len(PREFIX) + visual
    length = front + packed.block.shape[1]
    block = torch.full((size, length), -1)
    block[:, front:] = torch.from_numpy(packed.block)
    there = torch.ones(size, length, dtype=torch.bool)
    there[:, len(PREFIX) : front] = torch.from_numpy(packed.visible)
    allow = (block[:, None, :] == -1) | (block[:, None, :] == block[:, :, None])
    allow &= torch.ones(length, length, dtype=torch.bool).tril()
    allow &= there[:, None, :] | torch.eye(length, dtype=torch.bool)
    return torch.zeros(size, 1, length, length, dtype=dtype).masked_fill_(~allow[:, None], -1e4)


def positions(packed: Packed) -> torch.Tensor:
    """Position ids (B, S) as in a prompt with all 196 visual tokens and one question."""
    size = len(packed.keep)
    front = torch.arange(len(PREFIX)).expand(size, -1)
    seen = torch.from_numpy(packed.keep) + len(PREFIX)
    return torch.cat([front, seen, torch.from_numpy(packed.place) + len(PREFIX) + TOKENS], 1)
