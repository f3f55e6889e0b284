"""One answer that is asked for, and what its request is sent of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from foveate.pruners.base import Pruner
from foveate.serve.errors import ApiError
from foveate.serve.prompts import Prompt
from foveate.serve.sampling import Sampling


@dataclass(frozen=True)
class TokenScore:
    """A token of the answer, with the logarithm of its probability, and those that were most likely."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Pruned:
    """What was kept of a prompt.

    Attributes
    ----------
    dense, kept
        Visual tokens before any pruning, and after the last stage.
    skipped
        Why nothing was pruned, where something was to be.
    selection_ms
        Of the whole batch.
    """

    dense: int
    kept: int
    skipped: str | None = None
    selection_ms: float = 0.0


@dataclass(frozen=True)
class Piece:
    """A further piece of the answer."""

    text: str
    scores: Sequence[TokenScore] = ()


@dataclass(frozen=True)
class Done:
    """The answer is over; the text is all of it."""

    text: str
    reason: Literal["stop", "length"]
    tokens: int
    pruned: Pruned
    scores: Sequence[TokenScore] = ()


def late() -> ApiError:
    """Return the error of a request whose time is over."""
    return ApiError(504, "the time limit of a request is over", "time_limit")


Event = Piece | Done | ApiError


@dataclass(eq=False)
class Job:
    """An answer that is asked for.

    Attributes
    ----------
    prompt, pruner, sampling, stop, max_new
        What is asked; the pruner None is the dense model.
    top
        How many likely tokens are told beside each token of the answer; None: no probabilities at all.
    streams
        Whether pieces are sent before the end.
    expires
        When its time is over, by `time.monotonic`.
    send
        Takes events, from the worker's thread, and never waits.
    tokens
        Of the answer so far; they stand when a batch has to be run again.
    sent, scored
        Characters and probabilities of the answer that were sent.
    over
        An answer or an error was sent, or nobody waits for one.
    """

    prompt: Prompt
    pruner: Pruner | None
    sampling: Sampling
    stop: tuple[str, ...]
    max_new: int
    top: int | None
    streams: bool
    expires: float
    send: Callable[[Any], None]
    arrived: float = field(default_factory=time.monotonic)
    tokens: list[int] = field(default_factory=list)
    sent: int = 0
    scored: int = 0
    over: bool = False
    first_seen: bool = False

    def finish(self, event: Done | ApiError) -> None:
        """Send the last event, once."""
        if not self.over:
            self.over = True
            self.send(event)

    def cancel(self) -> None:
        """Nobody waits for the answer any more: its row ends at the next step."""
        self.over = True

    def expired(self) -> bool:
        """Whether its time is over; then an error was sent."""
        if not self.over and time.monotonic() >= self.expires:
            self.finish(late())
        return self.over
