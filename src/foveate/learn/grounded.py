"""Stand-in until the data branch is merged."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.learn.samples import Sample


@dataclass(frozen=True)
class GroundedSample(Sample):
    """A question with its answer and the boxes of its evidence."""

    answer: str = ""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    task: str = ""
