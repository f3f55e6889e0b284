"""What an evaluation asks: the questions of suites and own ones, one after another."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from foveate.measure.eval.data.questions import OwnQuestions
from foveate.measure.eval.suites import Example, suite_fingerprint


class Asked(Sequence[Example]):
    """The questions of several suites and of own data, numbered through; each is made or read when it is its turn.

    Parameters
    ----------
    parts
        The questions of each suite by its name, and own ones by the name of the data.
    """

    def __init__(self, parts: Mapping[str, Sequence[Example]]) -> None:
        self.parts = dict(parts)
        self._starts = [0, *accumulate(len(part) for part in self.parts.values())]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = self._number(index)
        example = list(self.parts.values())[number][index - self._starts[number]]
        return replace(example, index=index) if number else example

    def _number(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1

    def suite(self, index: int) -> str:
        """Name of the suite, or of the data, that a question is of."""
        return list(self.parts)[self._number(index)]

    def own(self, index: int) -> OwnQuestions | None:
        """The own data that a question is of; `None` for one of a suite."""
        part = self.parts[self.suite(index)]
        return part if isinstance(part, OwnQuestions) else None

    def task(self, example: Example) -> str:
        """The task as results name it: of several suites, which may share names, with the suite's."""
        return f"{self.suite(example.index)}: {example.task}" if len(self.parts) > 1 else example.task

    def batches(self, size: int) -> list[list[int]]:
        """Indices in batches; each is of one suite, and own questions are in batches of about the same length."""
        found = []
        for start, part in zip(self._starts, self.parts.values(), strict=False):
            own = part.batches(size) if isinstance(part, OwnQuestions) else _in_order(len(part), size)
            found += [[start + at for at in batch] for batch in own]
        return found

    @property
    def name(self) -> str:
        """Names of all parts."""
        return ", ".join(self.parts)

    @property
    def fingerprint(self) -> str:
        """Short hash of questions, answers and images."""
        found = [
            part.fingerprint if isinstance(part, OwnQuestions) else suite_fingerprint(part)
            for part in self.parts.values()
        ]
        return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()[:16]

    @property
    def skipped(self) -> list[str]:
        """Why rows of own data were left out."""
        return [line for part in self.parts.values() if isinstance(part, OwnQuestions) for line in part.skipped]


def _in_order(number: int, size: int) -> list[list[int]]:
    return [list(range(at, min(at + size, number))) for at in range(0, number, size)]
