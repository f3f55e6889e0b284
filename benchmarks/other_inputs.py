"""Can the embedded model, trained on one image of 256 x 256, be asked about two images, video or a large image?

A suite is of use where the dense model is right: a method can keep only what is there. So each form of input is tried
dense, on held-out questions, beside the same questions as they were trained: the scene twice, with an empty image
before or behind it, with another scene that has nothing of the colour and kind that the question names, four times as
a video held still, and on a canvas of twice the width and height, which the processor reduces to 256 x 256.

    python benchmarks/other_inputs.py --out benchmarks/results/other_inputs.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from foveate import tiny
from foveate.measure import environment
from foveate.measure.eval.answers import run_batch
from foveate.measure.eval.suites import is_correct
from foveate.measure.loading import LoadedModel, load_model
from foveate.tiny.pairs import could_mean

tiny.PAIR_TASKS = (
    "read",
    "find",
    "number",
    "spell",
    "position",
    "relation",
)  # whose questions name each thing that is asked for
EMPTY = Image.new("RGB", (256, 256), (128, 128, 128))
BATCH = 17

Item = tuple[tiny.Scene, tiny.Question]


def another(scene: tiny.Scene, question: tiny.Question, others: list[tiny.Scene]) -> Image.Image:
    """The first other scene in which the question could mean nothing, and no sign has a text of the first."""
    texts = {thing.text for thing in scene.objects if thing.text}
    for other in others:
        if not could_mean(question, scene, other) and not texts & {thing.text for thing in other.objects}:
            return other.pil()
    raise SystemExit("no scene without what the question names: draw more")


def canvas(image: Image.Image) -> Image.Image:
    """The scene in the middle of an empty image of twice the width and height."""
    large = EMPTY.resize((512, 512))
    large.paste(image, (128, 128))
    return large


def forms(others: list[tiny.Scene]) -> dict[str, Callable[[Item], list[Image.Image]]]:
    """The images of a question, by form."""

    def scene(item: Item) -> Image.Image:
        return item[0].pil()

    return {
        "as trained": lambda item: [scene(item)],
        "the scene, then another": lambda item: [scene(item), another(*item, others)],
        "another scene, then the scene": lambda item: [another(*item, others), scene(item)],
        "the scene twice": lambda item: [scene(item)] * 2,
        "the scene, then an empty image": lambda item: [scene(item), EMPTY],
        "an empty image, then the scene": lambda item: [EMPTY, scene(item)],
        "four frames of the scene": lambda item: [scene(item)] * 4,
        "on a canvas of 512 x 512": lambda item: [canvas(scene(item))],
    }


def right(loaded: LoadedModel, items: list[Item], images: Callable[[Item], list[Image.Image]]) -> list[bool]:
    """Whether each dense answer is right."""
    found = []
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        batch = run_batch(loaded, [question.text for _, question in part], [images(item) for item in part])
        found += [is_correct(text, question.answer) for text, (_, question) in zip(batch.texts, part, strict=True)]
    return found


def share(found: list[bool]) -> dict[str, Any]:
    """How many are right."""
    return {"questions": len(found), "right": sum(found), "accuracy": round(sum(found) / len(found), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=68, help="Questions, the 17 tasks in turn.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model("tiny", "cpu", "auto")
    items = list(tiny.held_out(options.samples, seed=21))
    naming = [item for item in items if item[1].task in tiny.PAIR_TASKS]
    others = [scene for scene, _ in tiny.held_out(2 * options.samples, seed=22)]
    found = {}
    for name, images in forms(others).items():
        asked = naming if "another" in name else items  # the others could be about either scene
        answers = right(loaded, asked, images)
        told = [one for one, (_, question) in zip(answers, asked, strict=True) if question.task in tiny.PAIR_TASKS]
        found[name] = {**share(answers), "naming": share(told)}
        print(name, found[name], flush=True)
    result = {
        "format": "foveate-other-inputs-1",
        "command": environment.command(),
        "weights": environment.model_fingerprint(loaded.model),
        "versions": environment.versions(),
        "naming": list(tiny.PAIR_TASKS),
        "forms": found,
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
