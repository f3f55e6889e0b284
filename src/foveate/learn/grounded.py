"""What a predictor is trained on: images, questions, short answers, and boxes around what the answer is read from."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from foveate.learn.errors import TrainingDataError
from foveate.learn.samples import read_image

Box = tuple[float, float, float, float]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GroundedSample:
    """One image, what is asked about it, the answer, and where that is read from.

    Parameters
    ----------
    question, answer : str
        In plain words.
    source : Image, Path or callable
        The image, the file that holds it, or what makes it.
    boxes : tuple of boxes
        (x1, y1, x2, y2) as shares of the image's width and height. None: the answer lies nowhere in particular, and
        the sample has no localisation target.
    task : str
        Kind of question, where the data says so.
    """

    question: str
    answer: str
    source: Image.Image | Path | Callable[[], Image.Image]
    boxes: tuple[Box, ...] = ()
    task: str = ""

    def image(self) -> Image.Image:
        """The image in RGB.

        Raises
        ------
        TrainingDataError
            Its file cannot be read as an image.
        """
        if isinstance(self.source, Path):
            return read_image(self.source, TrainingDataError)
        return self.source if isinstance(self.source, Image.Image) else self.source()


@dataclass(frozen=True)
class GroundedSamples:
    """All samples of a training.

    Parameters
    ----------
    items : tuple of GroundedSample
        In their order.
    name : str
        Where they are from.
    fingerprint : str
        Short hash of questions, answers, boxes and images.
    """

    items: tuple[GroundedSample, ...]
    name: str
    fingerprint: str


def from_scenes(number: int, seed: int, per_scene: int = 9, progress: Progress | None = None) -> GroundedSamples:
    """Questions about scenes of the embedded model, its tasks in turn; no scene of them is ever in an evaluation.

    Where the answer says that something is absent, the boxes are what could be mistaken for it, if anything.

    Parameters
    ----------
    number, seed : int
        How many, and which.
    per_scene : int
        The most questions about one scene; drawing it takes longer than all else here.
    progress : callable, optional
        Called with what is done, how many and of how many.

    Raises
    ------
    TrainingDataError
        No sample, or no question a scene, was asked for.
    """
    if number < 1 or per_scene < 1:
        raise TrainingDataError(f"at least one sample and one question a scene, got {number} and {per_scene}")
    from foveate import tiny
    from foveate.tiny.heldout import GROUNDED_STREAM

    places = {task: list(range(number))[turn :: len(tiny.TASKS)] for turn, task in enumerate(tiny.TASKS)}
    items: dict[int, GroundedSample] = {}
    digest = hashlib.sha256()
    for index in itertools.count():
        rng = np.random.default_rng([GROUNDED_STREAM, seed, index])
        scene = tiny.make_scene(rng)
        image = scene.pil()
        digest.update(image.tobytes())
        # the task that misses most first, so that none is left for scenes of its own
        missing = sorted((task for task in places if places[task]), key=lambda task: -len(places[task]))
        asked = 0
        for task in missing:
            if asked < per_scene and (question := tiny.ask(rng, scene, task)) is not None:
                boxes = tuple(_shares(box, *image.size) for box in question.boxes)
                items[places[task].pop(0)] = GroundedSample(question.text, question.answer, image, boxes, task)
                asked += 1
        if progress:
            progress("drawing the scenes", len(items), number)
        if len(items) == number:
            break
    ordered = tuple(items[place] for place in range(number))
    return GroundedSamples(ordered, f"scenes, seed {seed}", _fingerprint(digest, ordered))


def _shares(box: tuple[float, ...], width: float, height: float) -> Box:
    x1, y1, x2, y2 = box
    return x1 / width, y1 / height, x2 / width, y2 / height


def _fingerprint(digest: hashlib._Hash, items: tuple[GroundedSample, ...]) -> str:
    """Short hash of all that the samples say, on top of what `digest` has of their images."""
    for item in items:
        digest.update(f"{item.task} {item.question} {item.answer} {item.boxes}\n".encode())
    return digest.hexdigest()[:16]
