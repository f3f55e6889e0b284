"""Everything foveate raises on purpose.

One base class, so that `except foveate.errors.FoveateError` catches all of it; the classes that stand for a wrong
argument or a missing file are also the built-in that a caller would expect.
"""

__all__ = [
    "AlreadyAttachedError",
    "BudgetError",
    "FoveateError",
    "IncompatibleWeightsError",
    "ModelInUseError",
    "ModelNotReachable",
    "UnknownMethodError",
    "UnsupportedCacheError",
    "UnsupportedModelError",
    "VisionFeaturesError",
]


class FoveateError(Exception):
    """Base of every error that foveate raises on purpose."""


class UnsupportedModelError(FoveateError):
    """The model is of a family, or in a state, that foveate cannot prune correctly."""


class UnsupportedCacheError(FoveateError):
    """The KV cache in use cannot hold layers of different lengths."""


class VisionFeaturesError(FoveateError):
    """What the vision encoder put out for a prompt was not seen, or does not go with its visual tokens."""


class AlreadyAttachedError(FoveateError):
    """A pruner is attached to this model already; detach it first."""


class ModelInUseError(FoveateError, RuntimeError):
    """A pruner is to be detached, or was by force, while a thread is in a forward pass of the model."""


class BudgetError(FoveateError, ValueError):
    """A keep ratio, a count or a threshold is out of range, or asks for what the method cannot give."""


class IncompatibleWeightsError(FoveateError, ValueError):
    """Learned weights do not fit the model, or a file of weights is not what it should be."""


class UnknownMethodError(FoveateError, ValueError):
    """No pruning method of this name, or no option of this name; the message lists what exists."""


class ModelNotReachable(FoveateError, OSError):
    """No such folder, and the Hub did not answer or has no such model; the message says what to do."""
