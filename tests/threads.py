"""Work in several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any


def at_once(work: Callable[[Any], Any], over: Iterable[Any]) -> dict[Any, Any]:
    """`work(one)` for each, in a thread of its own; what each gave. The first error of any is raised."""
    found: dict[Any, Any] = {}
    errors: list[BaseException] = []

    def run(one: Any) -> None:
        try:
            found[one] = work(one)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in over]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found
