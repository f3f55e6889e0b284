"""A lock that an interruption cannot leave locked for the thread that was interrupted."""

from __future__ import annotations

import threading
from types import TracebackType


class Mutex:
    """A lock for `with`, not to be nested.

    An interruption between the last statement of a block and its end leaves it locked. The thread that holds it may
    come in again, and then leaves it free for all, which detaching a pruner does at the latest.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while True:
                self._lock.release()
        except RuntimeError:  # this thread holds it no more
            pass
