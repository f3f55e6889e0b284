"""One value for each thread that goes when its thread goes, and that other threads can still reach."""

from __future__ import annotations

import threading
import weakref
from typing import Generic, TypeVar

T = TypeVar("T")


class PerThread(Generic[T]):
    """A value of each thread's own; only that thread holds on to it.

    A table by `ident` would keep what a thread that has ended left behind, until another one is given its `ident`.
    """

    def __init__(self) -> None:
        self._thread = threading.local()
        self._all: weakref.WeakValueDictionary[int, T] = weakref.WeakValueDictionary()

    @property
    def own(self) -> T | None:
        """This thread's value."""
        return getattr(self._thread, "value", None)

    @own.setter
    def own(self, value: T | None) -> None:
        if value is None:
            self._all.pop(threading.get_ident(), None)
        else:
            self._all[threading.get_ident()] = value
        self._thread.value = value

    def every(self) -> list[T]:
        """The values of all threads."""
        return [value for reference in self._all.valuerefs() if (value := reference()) is not None]

    def clear(self) -> None:
        """Let go of the values of all threads."""
        self._all.clear()
        self._thread = threading.local()
