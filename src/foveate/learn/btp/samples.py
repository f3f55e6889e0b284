"""What is calibrated on: questions of a suite, or any folder of images."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from foveate.errors import FoveateError
from foveate.learn.errors import CalibrationError
from foveate.measure.eval.suites import load_suite, suite_fingerprint
from foveate.measure.images import as_rgb

DESCRIBE = "Describe the image."


@dataclass(frozen=True)
class Sample:
    """One image and what is asked about it.

    Parameters
    ----------
    question
        In plain words.
    source
        The image, or the file that holds it.
    """

    question: str
    source: Image.Image | Path

    def image(self) -> Image.Image:
        """The image in RGB."""
        return read_image(self.source) if isinstance(self.source, Path) else self.source


@dataclass(frozen=True)
class Samples:
    """All samples of a calibration.

    Parameters
    ----------
    items
        In their order.
    name
        The suite, or the folder.
    fingerprint
        Short hash of questions and images.
    """

    items: tuple[Sample, ...]
    name: str
    fingerprint: str


def read_image(path: Path, failure: type[FoveateError] = CalibrationError) -> Image.Image:
    """Return an image of a file in RGB, turned as its camera meant.

    Raises
    ------
    CalibrationError
        Or `failure`: the file cannot be read as an image; the message names it.
    """
    try:
        with Image.open(path) as image:
            return as_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise failure(f"cannot read the image {path}: {error}") from error


def from_suite(name: str, number: int, seed: int, progress: Callable[[str, int, int], None] | None = None) -> Samples:
    """Samples of an evaluation suite; give a seed that no evaluation uses.

    Raises
    ------
    UnknownSuiteError
        No suite of this name.
    CalibrationError
        It has fewer samples.
    """
    examples = load_suite(name, number, seed, progress)
    if len(examples) < number:
        raise CalibrationError(f"{number} samples were asked for, but suite '{name}' has {len(examples)}")
    items = tuple(Sample(example.question, example.image) for example in examples)
    return Samples(items, name, suite_fingerprint(examples))


def from_folder(folder: Path, number: int, seed: int, question: str = DESCRIBE) -> Samples:
    """Images of a folder and of those in it, `number` of them drawn at random, all with the same question.

    Raises
    ------
    CalibrationError
        No folder, fewer images than asked for, or one that cannot be read.
    """
    if not os.path.isdir(folder):
        raise CalibrationError(f"no folder {folder}")
    known = Image.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    if len(paths) < number:
        raise CalibrationError(f"{number} images were asked for, but {folder} holds {len(paths) or 'none'}")
    paths = random.Random(seed).sample(paths, number)
    digest = hashlib.sha256(question.encode())
    for path in paths:
        read_image(path)  # a broken one is said now, not after an hour
        digest.update(path.read_bytes())
    return Samples(tuple(Sample(question, path) for path in paths), str(folder), digest.hexdigest()[:16])
