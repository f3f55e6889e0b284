"""What a predictor is trained on: images, questions, short answers, and boxes around what the answer is read from."""

from collections.abc import Callable, Mapping
from functools import partial

from foveate.learn.data.readers import from_datasets, from_jsonl
from foveate.learn.data.sample import Box, GroundedSample, GroundedSamples, split
from foveate.learn.data.scenes import from_scenes

SUITES: Mapping[str, Callable[..., GroundedSamples]] = {
    "scenes": from_scenes,
    "scenes-hard": partial(from_scenes, hard=True),
}

__all__ = [
    "SUITES",
    "Box",
    "GroundedSample",
    "GroundedSamples",
    "from_datasets",
    "from_jsonl",
    "from_scenes",
    "split",
]
