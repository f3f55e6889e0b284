"""What the report is made of, however long a process runs: the last prefills, and how many there were."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable

from foveate.engine.forward_pass import PrefillRecord
from foveate.engine.report import Prefill, Report

LAST = 100  # prefills that a report has


class History:
    """The prefills of one attachment, of all its threads.

    Only the newest one's tensors lie on its device, others move to the CPU when the next prefill begins: memory stays
    as it is after `LAST` prefills. An entry of the report is made once.
    """

    def __init__(self) -> None:
        self.records: deque[PrefillRecord] = deque(maxlen=LAST)
        self.entries: dict[int, Prefill] = {}
        self.seen, self.skipped = 0, Counter[str]()
        self.lock = threading.Lock()

    def append(self, record: PrefillRecord) -> None:
        """Take in a prefill that is over."""
        with self.lock:
            if len(self.records) == LAST:
                self.entries.pop(id(self.records[0]), None)
            self.records.append(record)
            self.seen += 1
            if record.skipped is not None:
                self.skipped[record.skipped] += 1

    def to_host(self) -> None:
        """Move the newest prefill's tensors to the CPU, at a time when the device has nothing to do."""
        with self.lock:
            if self.records and id(self.records[-1]) not in self.entries:
                self.records[-1].to_host()

    def clear(self) -> None:
        """Forget all prefills so far."""
        with self.lock:
            self.records.clear()
            self.entries.clear()
            self.seen, self.skipped = 0, Counter()

    def report(self, summarise: Callable[[PrefillRecord], Prefill]) -> Report:
        """The last prefills as the user reads them; `summarise` is called for those that were not read yet."""
        with self.lock:
            for record in self.records:
                if id(record) not in self.entries:
                    self.entries[id(record)] = summarise(record)
                    record.stages, record.image = [], None  # the entry has what the user may want of them
            entries = tuple(self.entries[id(record)] for record in self.records)
            report = Report(entries, self.seen, dict(self.skipped))
        object.__setattr__(report, "_forget", self.clear)
        return report
