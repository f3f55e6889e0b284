"""Evaluation suites: a name, a number and a seed in, questions about images with known answers out."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from foveate.errors import FoveateError
from foveate.measure.loading import TINY, TINY_MANY


class UnknownSuiteError(FoveateError, ValueError):
    """No suite of this name; the message lists what exists."""


@dataclass(frozen=True)
class Example:
    """One question about one image.

    Parameters
    ----------
    index
        Place in the suite.
    task
        Kind of question; results are also given by task.
    image
        What is asked about.
    question, answer
        In plain words.
    evidence
        Indices of the visual tokens that the answer lies under, on the embedded model's grid.
    """

    index: int
    task: str
    image: Image.Image
    question: str
    answer: str
    evidence: torch.Tensor | None = None

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """All images that it is about."""
        return (self.image,)

    @property
    def videos(self) -> tuple[tuple[Image.Image, ...], ...]:
        """All videos that it is about, each as its frames."""
        return ()


@dataclass(frozen=True)
class SeveralImages(Example):
    """A question about several images.

    Parameters
    ----------
    images
        All of them; `image` is one that the answer is in, and `evidence` counts the visual tokens of all.
    """

    images: tuple[Image.Image, ...] = ()  # type: ignore[assignment]


@dataclass(frozen=True)
class Suite:
    """Questions by a name.

    Parameters
    ----------
    make
        `(samples, seed) -> questions`.
    breaks
        What it is made to break, in words.
    """

    make: Callable[[int, int], Iterable[Example]]
    breaks: str

    def __call__(self, samples: int, seed: int) -> Iterable[Example]:
        """Make the questions."""
        return self.make(samples, seed)


def scenes(samples: int, seed: int) -> Iterator[Example]:
    """Yield held-out scenes of the embedded model, balanced over its tasks: short answers, and long ones that read."""
    from foveate import tiny

    return _examples(tiny.held_out(samples, seed=seed))


def scenes_hard(samples: int, seed: int) -> Iterator[Example]:
    """Yield the embedded model's harder split: crowded scenes, questions in forms that its training never used."""
    from foveate import tiny

    return _examples(tiny.held_out_hard(samples, seed=seed))


def _examples(items: Iterable[tuple[Any, Any]]) -> Iterator[Example]:
    from foveate import tiny

    for index, (scene, question) in enumerate(items):
        evidence = torch.as_tensor(tiny.evidence_tokens(question)).nonzero().flatten()
        yield Example(index, question.task, scene.pil(), question.text, question.answer, evidence)


def scenes_two(samples: int, seed: int) -> Iterator[Example]:
    """Yield two held-out scenes with a question about the first or the second, in turn."""
    from foveate import tiny
    from foveate.tiny.scenes import TOKENS

    for index, (scene, other, question) in enumerate(tiny.held_out_pairs(samples, seed=seed)):
        place = index // len(tiny.PAIR_TASKS) % 2
        evidence = torch.as_tensor(tiny.evidence_tokens(question)).nonzero().flatten() + place * TOKENS
        meant, beside = scene.pil(), other.pil()
        images = (beside, meant) if place else (meant, beside)
        yield SeveralImages(index, question.task, meant, question.text, question.answer, evidence, images=images)


def scenes_video(samples: int, seed: int) -> Iterator[Example]:
    """Yield held-out clips as their frames, balanced over their tasks."""
    from foveate import tiny

    return _several((clip.pils(), question) for clip, question in tiny.held_out_clips(samples, seed=seed))


def scenes_large(samples: int, seed: int) -> Iterator[Example]:
    """Yield held-out images of 512 x 512 pixels as four tiles in reading order, balanced over their tasks."""
    from foveate import tiny
    from foveate.tiny.large import tiles

    held_out = tiny.held_out_large(samples, seed=seed)
    return _several((tuple(map(Image.fromarray, tiles(scene))), question) for scene, question in held_out)


def _several(items: Iterable[tuple[tuple[Image.Image, ...], Any]]) -> Iterator[Example]:
    """Examples of images and a question whose boxes are in the images one above the other."""
    from foveate import tiny
    from foveate.tiny.scenes import GRID, TOKENS

    for index, (images, question) in enumerate(items):
        covered = tiny.evidence_tokens(question, GRID, GRID * len(images))
        evidence = torch.as_tensor(covered).nonzero().flatten()
        meant = images[int(evidence[0]) // TOKENS if len(evidence) else 0]
        yield SeveralImages(index, question.task, meant, question.text, question.answer, evidence, images=images)


SUITES: Mapping[str, Suite] = {
    "scenes": Suite(
        scenes,
        "methods that lose small things: a number or word has one visual token a character, and half of the answers "
        "need several places one after another, so that a cut must keep what is said last",
    ),
    "scenes-hard": Suite(
        scenes_hard,
        "methods that keep objects, but not the one asked for: 14 to 24 in few colours and shapes, many partly "
        "hidden; forms of questions that were never trained break the model itself, and leave room for fine-tuning",
    ),
    "scenes-two": Suite(
        scenes_two,
        "methods that cannot tell which image is meant: two scenes, and only the things that the question names say "
        "which; what is kept of the other is lost",
    ),
    "scenes-video": Suite(
        scenes_video,
        "methods that keep what one frame shows: eight frames, and only from several of them can be told where things "
        "move, which enter or leave, and in which order; most of each frame is what the frame before showed",
    ),
    "scenes-large": Suite(
        scenes_large,
        "methods that share their budget badly between tiles: an image of 512 x 512 as four of 256 x 256, and "
        "questions about one small thing in it or about things in several tiles",
    ),
}


FOR_MANY = ("scenes-video", "scenes-large")  # suites on which only the embedded weights `tiny-many` were trained


def suite_named(name: str) -> Suite:
    """What makes the examples of a suite.

    Raises
    ------
    UnknownSuiteError
        No suite of this name.
    """
    if name not in SUITES:
        raise UnknownSuiteError(f"no suite '{name}'; there are {', '.join(SUITES)}")
    return SUITES[name]


def untrained(model: str, suites: Sequence[str]) -> list[str]:
    """Say which suites the embedded weights of that name were never trained for."""
    return [
        f"{name} is for the model {TINY_MANY}; {model} was never trained on such questions"
        for name in suites
        if model == TINY and name in FOR_MANY
    ]


def parse_suites(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list.

    Raises
    ------
    UnknownSuiteError
        No suite of a name, or one is named twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        suite_named(name)
    if len(set(names)) < len(names):
        raise UnknownSuiteError(f"--suite names a suite twice: {text}")
    return names


def load_suite(
    name: str, samples: int, seed: int, progress: Callable[[str, int, int], None] | None = None
) -> list[Example]:
    """Return the examples of a suite.

    Parameters
    ----------
    name
        One of `SUITES`.
    samples, seed
        How many, and which.
    progress
        Called with what is done, how many and of how many, after each example.

    Raises
    ------
    UnknownSuiteError
        No suite of this name.
    """
    make = suite_named(name)
    if samples < 1:
        raise UnknownSuiteError(f"a suite needs at least one sample, got {samples}")
    examples = []
    for example in make(samples, seed):
        examples.append(example)
        if progress:
            progress("making the questions", len(examples), samples)
    return examples


def suite_fingerprint(examples: Sequence[Example]) -> str:
    """Return a short hash of questions, answers and pixels."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.index} {example.task} {example.question} {example.answer}".encode())
        for image in example.images:
            digest.update(image.tobytes())
    return digest.hexdigest()[:16]


def normalise(answer: str) -> str:
    """Return an answer as it is compared: lower case, single blanks, no closing punctuation."""
    return re.sub(r"\s+", " ", answer).strip().strip(".!,;:").strip().lower()


def is_correct(answer: str, truth: str) -> bool:
    """Say whether an answer matches the truth exactly, once both are normalised."""
    return normalise(answer) == normalise(truth)
