"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from foveate.serve.batch import Measured

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """The server's counters.

    Parameters
    ----------
    queue, running
        Return how many sequences wait, and how many requests wait or run.
    """

    def __init__(self, queue: Callable[[], float], running: Callable[[], float]) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("foveate_requests", "Requests by HTTP status.", ["status"], registry=own)
        self.seconds = Histogram("foveate_request_seconds", "From request to end.", buckets=SECONDS, registry=own)
        self.cancelled = Counter("foveate_cancelled", "Requests whose client went away.", registry=own)
        self.first = Histogram(
            "foveate_time_to_first_token_seconds", "From arrival in the queue.", buckets=SECONDS, registry=own
        )
        self.step = Histogram("foveate_time_per_token_seconds", "Of one decode step.", buckets=STEPS, registry=own)
        self.batch = Histogram(
            "foveate_batch_size", "Sequences of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=own
        )
        self.visual = Counter("foveate_visual_tokens", "Visual tokens of prompts.", registry=own)
        self.kept = Counter("foveate_visual_tokens_kept", "Visual tokens kept after the last stage.", registry=own)
        self.selection = Histogram(
            "foveate_selection_seconds", "Selecting the tokens of a batch.", buckets=STEPS, registry=own
        )
        self.kv = Gauge("foveate_kv_bytes", "KV cache of the last batch, at its end.", registry=own)
        self.skipped = Counter("foveate_skipped", "Prompts that ran dense, by reason.", ["reason"], registry=own)
        self.failures = Counter("foveate_batch_failures", "Batches that failed, by kind.", ["kind"], registry=own)
        Gauge("foveate_queue", "Sequences that wait.", registry=own).set_function(queue)
        Gauge("foveate_requests_running", "Requests that wait or run.", registry=own).set_function(running)

    def batch_done(self, what: Measured) -> None:
        """Count a batch."""
        self.batch.observe(what.rows)
        self.kv.set(what.kv_bytes)
        for seconds in what.first:
            self.first.observe(seconds)
        for seconds in what.steps:
            self.step.observe(seconds)
        if what.selection_ms:
            self.selection.observe(what.selection_ms / 1e3)
        for row in what.pruned:
            self.visual.inc(row.dense)
            self.kept.inc(row.kept)
            if row.skipped:
                self.skipped.labels("few visual tokens" if "min_visual" in row.skipped else row.skipped).inc()

    def batch_failed(self, kind: str) -> None:
        """Count a batch that failed."""
        self.failures.labels(kind).inc()
