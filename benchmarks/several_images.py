"""What the embedded weights `tiny-many` can do with clips, large images, two scenes and single ones, beside `tiny`.

Every question has images of its own, and answers are teacher-forced: right is what greedy decoding would get exactly.
Beside all images, the model gets those of another question of the task, and only one: of a clip the first or the last
frame, of a large image the tile that holds most of the evidence.

    python benchmarks/several_images.py --out benchmarks/results/several_images.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate import tiny
from foveate.measure import environment
from foveate.tiny.large import tiles
from foveate.tiny.questions import Question
from foveate.tiny.scenes import TOKENS
from foveate.tiny.training.check import Items, answer_right, interval, make_items
from foveate.tiny.training.optimisers import FAST
from foveate.tiny.training.vision_stage import see, to_pixels

Drawn = list[tuple[np.ndarray, Question]]


def two(samples: int, seed: int) -> Drawn:
    """Two scenes, of which the first or the second is asked about, in turn, as in the suite."""
    out = []
    for index, (scene, other, question) in enumerate(tiny.held_out_pairs(samples, seed=seed)):
        images = [scene.image, other.image]
        out.append((np.stack(images[::-1] if index // len(tiny.PAIR_TASKS) % 2 else images), question))
    return out


SUITES: dict[str, tuple[int, int, Callable[[int, int], Drawn]]] = {
    "scenes-video": (
        8,
        len(tiny.CLIP_TASKS),
        lambda n, seed: [(clip.frames(), question) for clip, question in tiny.held_out_clips(n, seed=seed)],
    ),
    "scenes-large": (
        4,
        len(tiny.LARGE_TASKS),
        lambda n, seed: [(tiles(scene), question) for scene, question in tiny.held_out_large(n, seed=seed)],
    ),
    "scenes-two": (2, len(tiny.PAIR_TASKS), two),
    "scenes": (
        1,
        len(tiny.TASKS),
        lambda n, seed: [(scene.image[None], question) for scene, question in tiny.held_out(n, seed=seed)],
    ),
}
"""Images, tasks, and what draws the questions."""


def share(right: np.ndarray, tasks: np.ndarray) -> dict[str, Any]:
    """Per cent of right answers with a 95 % interval, over all and by task."""
    low, high = interval(lambda index: 100 * float(right[index].mean()), len(right))
    by_task = {task: round(100 * float(right[tasks == task].mean()), 1) for task in dict.fromkeys(tasks.tolist())}
    return {
        "right": round(100 * float(right.mean()), 1),
        "interval": [round(low, 1), round(high, 1)],
        "tasks": by_task,
    }


def one_image(tokens: torch.Tensor, items: Items, images: int) -> dict[str, torch.Tensor]:
    """The tokens (Q, 256, D) of one of the images, by what decides which."""
    each = tokens.view(len(tokens), images, TOKENS, -1)
    if images == 8:
        return {"first frame only": each[:, 0], "last frame only": each[:, -1]}
    if images == 4:
        most = items.evidence.view(len(tokens), images, TOKENS).sum(-1).argmax(-1)
        return {"one tile only": each[torch.arange(len(each)), most]}
    return {}


@torch.no_grad()
def figures(models: dict[str, torch.nn.Module], name: str, samples: int, seed: int) -> dict[str, Any]:
    """All figures of a suite."""
    images, tasks, draw = SUITES[name]
    model = models["tiny-many"]
    drawn = draw(samples // tasks * tasks, seed)
    tokens = torch.stack([see(model, to_pixels(shown))[0].flatten(0, 1) for shown, _ in drawn])
    questions = [question for _, question in drawn]
    items, batch = make_items(tokens, questions, images), 32 // images
    another = make_items(tokens.roll(tasks, 0), questions, images)
    arms = {
        "tiny-many": (model, items),
        "tiny": (models["tiny"], items),
        "images of another question": (model, another),
    }
    arms |= {arm: (model, make_items(few, questions)) for arm, few in one_image(tokens, items, images).items()}
    found = {arm: share(answer_right(which, asked, batch=batch), items.tasks) for arm, (which, asked) in arms.items()}
    for arm, figure in found.items():
        print(name, arm, figure, flush=True)
    return {"questions": len(drawn), "arms": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=480, help="Questions of each suite, its tasks in turn.")
    parser.add_argument("--seed", type=int, default=31)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {"tiny": tiny.load()[0], "tiny-many": tiny.load(many=True)[0]}
    result = {
        "format": "foveate-several-images-1",
        "command": environment.command(),
        "weights": {name: environment.model_fingerprint(model) for name, model in models.items()},
        "dtype": str(FAST).removeprefix("torch."),
        "seed": options.seed,
        "versions": environment.versions(),
        "suites": {name: figures(models, name, options.samples, options.seed) for name in SUITES},
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
