"""What the report is made of, however long a process runs: the last prefills, and how many there were."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from foveate.engine.forward_pass import PrefillRecord
from foveate.engine.report import Prefill, Report

LAST = 100  # prefills that a report has


class History:
    """The prefills of one attachment, of all its threads.

    Only the newest one's tensors lie on its device, others move to the CPU when the next prefill begins: memory stays
    as it is after `LAST` prefills. An entry of the report is made once.

    There is no lock, which an interruption could leave locked: each step is one of C's own, which no thread divides.
    """

    def __init__(self) -> None:
        self.records: deque[PrefillRecord] = deque(maxlen=LAST)
        self.counts = Counter[str | None]()  # of all prefills under None, of those that ran dense by reason

    def append(self, record: PrefillRecord) -> None:
        """Take in a prefill that is over."""
        self.records.append(record)
        self.counts.update([None] if record.skipped is None else [None, record.skipped])

    def to_host(self) -> None:
        """Move the newest prefill's tensors to the CPU, at a time when the device has nothing to do."""
        for record in list(self.records)[-1:]:
            record.to_host()

    def clear(self) -> None:
        """Forget all prefills so far."""
        self.records.clear()
        self.counts.clear()

    def report(self, summarise: Callable[[PrefillRecord], Prefill]) -> Report:
        """The last prefills as the user reads them; `summarise` is called for those that were not read yet."""
        counts, entries = dict(self.counts), []
        for record in list(self.records):
            if record.entry is None:
                record.entry = summarise(record)
            entries.append(record.entry)
        seen = counts.pop(None, 0)
        report = Report(tuple(entries), seen, {reason: number for reason, number in counts.items() if reason})
        object.__setattr__(report, "_forget", self.clear)
        return report
