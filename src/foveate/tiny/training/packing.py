"""Many questions after one image: batches for the language stage, with tokens left out on purpose."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from foveate.tiny.questions import TASKS, Question, ask, overlap
from foveate.tiny.scenes import Scene
from foveate.tiny.training.pool import Pool
from foveate.tiny.vocabulary import ASSISTANT, BOS, EOS, NEWLINE, USER, WORD_ID, question_ids

PREFIX = [WORD_ID[BOS], WORD_ID[USER]]
TOKENS = 196
NO_TARGET = -100
# How often each task is asked in training, in the order of TASKS.
SHARES = (1.0, 0.8, 0.8, 1.6, 1.3, 2.0, 1.0, 1.8, 1.0)
EVEN = (1.0,) * len(TASKS)
SLOT = 13  # text positions of a question: its longest form with all but the last answer token


@dataclass
class Packed:
    """A batch of B images with V visual tokens each and Q questions each, every question in a slot of its own."""

    keep: np.ndarray
    """Indices of the visual tokens that are there, int64 (B, V), ascending."""
    visible: np.ndarray
    """bool (B, V); False where `keep` is only padding."""
    ids: np.ndarray
    """int64 (B, Q, SLOT)."""
    targets: np.ndarray
    """int64 (B, Q, SLOT): the next token where it belongs to an answer, else -100."""
    ends: np.ndarray
    """int64 (B, Q): place of the last prompt token in the slot; 0 in an empty slot."""
    tasks: list[tuple[int, int, str]] = field(default_factory=list)
    """Image, slot and task of each question."""
    box_slot: list[tuple[int, int]] = field(default_factory=list)
    """For each evidence box, image and slot of its question."""
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
    slots: int = 15,
    few: float = 0.0,
    shares: tuple[float, ...] = SHARES,
) -> Packed:
    """Ask up to `slots` questions about each selected scene.

    Parameters
    ----------
    rng
    pool
    chosen
        Numbers of the scenes, (B,).
    visual, slots
        Number of visual tokens V and of questions Q.
    few
        Chance that an image shows only the tokens of a few objects.
    shares
        How often each task is asked, in the order of `TASKS`.
    """
    size = len(chosen)
    chance = np.array(shares) / sum(shares)
    out = Packed(
        np.zeros((size, visual), dtype=np.int64),
        np.zeros((size, visual), dtype=bool),
        np.zeros((size, slots, SLOT), dtype=np.int64),
        np.full((size, slots, SLOT), NO_TARGET, dtype=np.int64),
        np.zeros((size, slots), dtype=np.int64),
    )
    for b, number in enumerate(chosen):
        scene = pool.scene(int(number))
        show, whole = _choose(rng, scene, visual, few)
        kept = np.flatnonzero(show)
        out.keep[b, : len(kept)] = kept
        out.visible[b, : len(kept)] = True
        asked: set[str] = set()
        for _ in range(4 * slots):
            if len(asked) == slots:
                break
            question = ask(rng, scene, TASKS[int(rng.choice(len(TASKS), p=chance))])
            if question is None or question.text in asked or any(box not in whole for box in question.boxes):
                continue
            if not question.boxes and len(whole) < len(scene.objects):
                continue  # "none" is only true where everything is shown
            slot = len(asked)
            asked.add(question.text)
            _fill(out, b, slot, question, kept, whole)
    return out


def _fill(
    out: Packed, b: int, slot: int, question: Question, kept: np.ndarray, whole: dict[tuple, np.ndarray]
) -> None:
    """Write one question into its slot."""
    head = [WORD_ID[NEWLINE], *question_ids(question.text), WORD_ID[ASSISTANT]]
    tail = [*question_ids(question.answer), WORD_ID[EOS]]
    length, end = len(head) + len(tail) - 1, len(head) - 1
    out.ids[b, slot, :length] = head + tail[:-1]
    out.targets[b, slot, end:length] = tail
    out.ends[b, slot] = end
    out.tasks.append((b, slot, question.task))
    for box in question.boxes if question.answer != "no" else ():
        out.box_slot.append((b, slot))
        row = np.zeros(out.keep.shape[1], dtype=bool)
        row[: len(kept)] = whole[box][kept]
        out.box_tokens.append(row)


def masks(visible: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Additive masks: among the front (B, P, P), causal, and from the text to the front (B, 1, P); P = 2 + V."""
    size, front = len(visible), len(PREFIX) + visible.shape[1]
    there = torch.ones(size, front, dtype=torch.bool, device=visible.device)
    there[:, len(PREFIX) :] = visible
    hidden = torch.zeros(size, 1, front, dtype=dtype, device=visible.device).masked_fill_(~there[:, None], -1e4)
    square = torch.ones(front, front, dtype=torch.bool, device=visible.device)
    allow = (there[:, None, :] & square.tril()) | torch.eye(front, dtype=torch.bool, device=visible.device)
    among = torch.zeros(size, front, front, dtype=dtype, device=visible.device).masked_fill_(~allow, -1e4)
    return among, hidden


def positions(keep: torch.Tensor, slots: int, slot: int = SLOT) -> torch.Tensor:
    """Position ids (B, S) as in a prompt with all 196 visual tokens and one question."""
    size = len(keep)
    front = torch.arange(len(PREFIX), device=keep.device).expand(size, -1)
    text = torch.arange(slot, device=keep.device).repeat(slots).expand(size, -1) + len(PREFIX) + TOKENS
    return torch.cat([front, keep + len(PREFIX), text], 1)
