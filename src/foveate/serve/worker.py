"""The thread that runs batches: requests that arrived together, and that ask for the same pruning."""

from __future__ import annotations

import functools
import gc
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

import torch

from foveate.pruners.base import Pruner
from foveate.serve.batch import Batches, Measured
from foveate.serve.errors import ApiError
from foveate.serve.jobs import Job

logger = logging.getLogger(__name__)
IDLE = 0.5  # seconds after which waiting requests are looked at for those whose time is over


class Worker:
    """Answers jobs in order of arrival, in batches.

    The oldest job decides what its batch is pruned with; later ones that ask for the same join it, up to `most`, until
    `window` seconds after its arrival. Whoever comes later waits for the next batch.

    Parameters
    ----------
    batches
        Answers a batch.
    most, window
        See above.
    join
        Whether those that come while a batch decodes join it, up to `most` rows: as long as none before them waits for
        another pruning.
    measured
        Is told what each batch took.
    failed
        Is told the kind of each error that a batch raised.
    """

    def __init__(
        self,
        batches: Batches,
        most: int,
        window: float,
        join: bool = False,
        measured: Callable[[Measured], None] = lambda what: None,
        failed: Callable[[str], None] = lambda kind: None,
    ) -> None:
        self.batches, self.most, self.window, self.join = batches, most, window, join
        self.measured, self.failed = measured, failed
        self.broken = False  # the device answers nothing any more
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._fits = most  # rows that the memory took
        self._thread = threading.Thread(target=self._run, name="foveate-serve", daemon=True)
        self._thread.start()

    @property
    def queue(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Let a job wait for its batch.

        Raises
        ------
        ApiError
            The server is about to end.
        """
        with self._changed:
            if self._closing:
                raise ApiError(503, "the server is shutting down", "shutting_down", retry_after=5)
            self._waiting.append(job)
            self._changed.notify_all()

    def close(self, seconds: float | None = None) -> bool:
        """Answer what waits, then end; whether that was done in time."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while jobs := self._next():
            self._answer(jobs, self.join)

    def _next(self) -> list[Job]:
        """Wait for the next batch; none: the server ends."""
        with self._changed:
            while True:
                self._drop()
                if not self._waiting:
                    if self._closing:
                        return []
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                alike = [job for job in self._waiting if job.pruner is first.pruner][: self._fits]
                left = first.arrived + self.window - time.monotonic()
                if left <= 0 or len(alike) == self._fits or self._closing:
                    taken = {id(job) for job in alike}
                    self._waiting = deque(job for job in self._waiting if id(job) not in taken)
                    return alike
                self._changed.wait(min(left, IDLE))

    def _more(self, pruner: Pruner | None, running: int) -> list[Job]:
        """Return those that may join a batch of so many rows now."""
        if not self._waiting:
            return []
        with self._changed:
            self._drop()
            found: list[Job] = []
            while self._waiting and self._waiting[0].pruner is pruner and running + len(found) < self._fits:
                found.append(self._waiting.popleft())
            return found

    def _drop(self) -> None:
        if any(job.expired() for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.expired())

    def _answer(self, jobs: list[Job], join: bool = False) -> None:
        """Answer jobs, and those that join them.

        A batch that fails is run again as two halves, which none join, and what fails alone fails alone.
        """
        jobs = [job for job in jobs if not job.expired()]
        if not jobs:
            return
        error: Exception | None = None
        try:
            if join:
                more = functools.partial(self._more, jobs[0].pruner)
                for what in self.batches.answer_joined(jobs, more):
                    self.measured(what)
                    self._fits = min(self._fits + 1, self.most)
            else:
                self.measured(self.batches.answer(jobs))
        except Exception as raised:  # noqa: BLE001 - of any error, its request gets to know; the others go on
            error = raised
        if error is None:
            self._fits = min(self._fits + 1, self.most)
            return
        kind, full = type(error).__name__, isinstance(error, torch.OutOfMemoryError)
        self.failed(kind)
        logger.warning("a batch of %d failed: %s %s", len(jobs), kind, where(error))
        if isinstance(error, torch.AcceleratorError):
            self.broken = True
        del error  # and the tensors in its frames
        alive = [job for job in jobs if not job.over]
        if full:
            self._fits = max(1, len(alive) // 2)
            gc.collect()
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
        if len(jobs) > 1:
            half = (len(alive) + 1) // 2
            self._answer(alive[:half])
            self._answer(alive[half:])
        elif full:
            jobs[0].finish(
                ApiError(503, "there is not enough memory for this request", "out_of_memory", retry_after=5)
            )
        else:
            jobs[0].finish(ApiError(500, "this request could not be answered", "internal_error"))


def where(error: BaseException) -> str:
    """Return where an error was raised, without its message: that may hold what a user wrote."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames))
