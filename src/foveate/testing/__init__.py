"""The laws that pruning must keep, for tests of methods, of families, and of models that foveate does not list.

`check_laws` runs them on any model and inputs; `reference_logits` is the slow way to what a pruned run must give, and
shares nothing with the engine.
"""

from foveate.testing.laws import LAWS, Law, check_laws, dense_run
from foveate.testing.reference import NEVER, hidden_from, prompt_positions, reference_logits
from foveate.testing.uneven import Uneven

__all__ = [
    "LAWS",
    "NEVER",
    "Law",
    "Uneven",
    "check_laws",
    "dense_run",
    "hidden_from",
    "prompt_positions",
    "reference_logits",
]
