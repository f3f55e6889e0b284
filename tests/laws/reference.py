"""The reference of `foveate.testing`, for tests that go step by step."""

from __future__ import annotations

from foveate import testing
from foveate.testing import NEVER, hidden_from, prompt_positions

__all__ = ["NEVER", "hidden_from", "prompt_positions", "reference_logits"]


def reference_logits(model, batch, sequences, gone, compacted=False):
    """(B, vocabulary) logits behind `sequences`."""
    return testing.reference_logits(model, batch, sequences, gone, compacted)[:, -1]
