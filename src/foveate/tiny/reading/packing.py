"""Many questions after one image, short and long ones in slots of fitting lengths."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from foveate.tiny.reading.model import TOKENS, WORD_ID, text_ids
from foveate.tiny.reading.pool import ReadingPool
from foveate.tiny.reading.questions import LONG_TASKS, TASKS, Question, ask_reading, cover
from foveate.tiny.reading.scenes import Box, Scene
from foveate.tiny.vocabulary import ASSISTANT, BOS, EOS, NEWLINE, USER

PREFIX = [WORD_ID[BOS], WORD_ID[USER]]
NO_TARGET = -100
Layout = tuple[tuple[int, int], ...]
"""How many slots of which length (text positions of a question with all but the last answer token), by length."""
LAYOUT: Layout = ((6, 10), (3, 13), (5, 18), (3, 23), (1, 28))
FEW_OBJECTS: Layout = ((6, 10), (2, 13), (3, 18), (1, 23))
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


def _show(rng: np.random.Generator, scene: Scene, count: int) -> tuple[np.ndarray, set[Box]]:
    """Which `count` tokens to show, and the boxes that are wholly shown."""
    if count == TOKENS:
        return np.ones(TOKENS, dtype=bool), {thing.box for thing in scene.objects}
    show, whole = np.zeros(TOKENS, dtype=bool), set()
    for number in rng.permutation(len(scene.objects)):
        box = scene.objects[number].box
        touched = show | (cover([box]) > 0)
        if touched.sum() <= count:
            show = touched
            whole.add(box)
    rest = np.flatnonzero(~show)
    show[rng.permutation(rest)[: count - int(show.sum())]] = True
    return show, whole


def written(question: Question) -> tuple[list[int], list[int]]:
    """Ids of the prompt after the image, and of the answer with its end."""
    head = [WORD_ID[NEWLINE], *text_ids(question.text), WORD_ID[ASSISTANT]]
    return head, [*text_ids(question.answer), WORD_ID[EOS]]


def pack(
    rng: np.random.Generator,
    pool: ReadingPool,
    chosen: np.ndarray,
    visual: int = TOKENS,
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
        Number of visual tokens V; below 256, some objects are shown whole and the rest is drawn.
    layout
    shares
        How often each task is asked; 1 by default.
    """
    size, text = len(chosen), sum(count * length for count, length in layout)
    weight = np.array([shares.get(task, 1.0) for task in TASKS])
    out = Packed(
        layout,
        np.zeros((size, visual), dtype=np.int64),
        np.zeros((size, text), dtype=np.int64),
        np.full((size, text), NO_TARGET, dtype=np.int64),
    )
    for b, number in enumerate(chosen):
        scene = pool.scene(int(number))
        show, whole = _show(rng, scene, visual)
        out.keep[b] = np.flatnonzero(show)
        starts, free, at = [], [], 0
        for count, length in layout:
            starts.append(at)
            free.append(count)
            at += count * length
        chance, texts = weight / weight.sum(), set()
        for number in rng.choice(len(TASKS), 5 * sum(free), p=chance):
            if not any(free):
                break
            question = ask_reading(rng, scene, TASKS[number])
            if question is None or question.text in texts or any(box not in whole for box in question.boxes):
                continue
            if not question.boxes and len(whole) < len(scene.objects):
                continue  # "none" is only true where everything is shown
            head, tail = written(question)
            length = len(head) + len(tail) - 1
            fits = [g for g, (_, room) in enumerate(layout) if free[g] and room >= length]
            # Slots for long answers stay free for them.
            if not fits or (question.task not in LONG_TASKS and layout[fits[0]][1] > _SHORT):
                continue
            group = fits[0]
            start = starts[group] + (layout[group][0] - free[group]) * layout[group][1]
            free[group] -= 1
            texts.add(question.text)
            end = start + len(head) - 1
            out.ids[b, start : start + length] = head + tail[:-1]
            out.targets[b, end : start + length] = tail
            out.asked.append((b, end, start + length, question))
    return out


def single(questions: list[Question]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and targets of each question alone, as `pack` writes them into a slot."""
    out = []
    for question in questions:
        head, tail = written(question)
        targets = np.full(len(head) + len(tail) - 1, NO_TARGET, dtype=np.int64)
        targets[len(head) - 1 :] = tail
        out.append((np.array(head + tail[:-1]), targets))
    return out


def positions(keep: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Position ids (B, 2 + V + T) as in a prompt with all 256 visual tokens and one question."""
    front = torch.arange(len(PREFIX)).expand(len(keep), -1)
    text = torch.from_numpy(places(layout)).expand(len(keep), -1) + len(PREFIX) + TOKENS
    return torch.cat([front, keep + len(PREFIX), text], 1)
