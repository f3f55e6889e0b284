"""Images, questions, short answers, and boxes around what the answer is read from."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from foveate.learn.btp.samples import read_image
from foveate.learn.errors import TrainingDataError
from foveate.measure.images import as_rgb

Box = tuple[float, float, float, float]
Source = Image.Image | Path | Callable[[], Image.Image]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GroundedSample:
    """One image, what is asked about it, the answer, and where that is read from.

    Parameters
    ----------
    question, answer
        In plain words.
    source
        The image, the file that holds it, or what makes it.
    boxes
        (x1, y1, x2, y2) as shares of the image's width and height. Empty: the answer lies nowhere in particular, and
        the sample has no localisation target.
    task
        Kind of question, where the data says so.
    """

    question: str
    answer: str
    source: Source
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
        image = self.source if isinstance(self.source, Image.Image) else self.source()
        return as_rgb(image)


@dataclass(frozen=True)
class GroundedSamples:
    """All samples of a training.

    Parameters
    ----------
    items
        In their order.
    name
        Where they are from.
    fingerprint
        Short hash of questions, answers, boxes and images.
    skipped
        Why samples were left out, one reason each, where that was asked for.
    """

    items: tuple[GroundedSample, ...]
    name: str
    fingerprint: str
    skipped: tuple[str, ...] = ()


def fingerprint(digest: hashlib._Hash, items: Iterable[GroundedSample]) -> str:
    """Short hash of all that samples say, on top of what `digest` has of their images."""
    for item in items:
        digest.update(f"{item.task} {item.question} {item.answer} {item.boxes}\n".encode())
    return digest.hexdigest()[:16]


def split(
    samples: GroundedSamples, number: int, held_out: int, seed: int
) -> tuple[GroundedSamples, tuple[GroundedSample, ...]]:
    """Samples to learn from and samples that are only looked at, both drawn at random; they share no image.

    Parameters
    ----------
    samples
        Where they are drawn from.
    number, held_out
        How many to learn from, at most, and how many to look at.
    seed
        Of the draw.

    Raises
    ------
    TrainingDataError
        No image is left to learn from.
    """
    order = random.Random(seed).sample(samples.items, len(samples.items))
    apart, images = order[:held_out], {_image_key(sample) for sample in order[:held_out]}
    rest = tuple(sample for sample in order[held_out:] if _image_key(sample) not in images)[:number]
    if len(apart) < held_out or not rest:
        raise TrainingDataError(
            f"{samples.name} has {len(samples.items)} samples: too few to hold {held_out} out and to learn from others"
        )
    drawn = hashlib.sha256(f"{samples.fingerprint} {number} {held_out} {seed}".encode()).hexdigest()[:16]
    return dataclasses.replace(samples, items=rest, fingerprint=drawn), tuple(apart)


def _image_key(sample: GroundedSample) -> Hashable:
    return sample.source if isinstance(sample.source, Path) else id(sample.source)
