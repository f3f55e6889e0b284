"""What calibration and training raise on purpose, and the models that training refuses."""

from __future__ import annotations

from typing import Any

from foveate.errors import FoveateError, UnsupportedModelError
from foveate.pruners.base import STATES


class CalibrationError(FoveateError, ValueError):
    """Samples, settings or an earlier run that a calibration cannot use; the message says why."""


class TrainingDataError(FoveateError, ValueError):
    """Grounded samples that a training cannot use; the message names the file and the line, and says why."""


class TrainingError(FoveateError, ValueError):
    """Settings, a state or an earlier run that a training cannot use; the message says why."""


class RewardError(FoveateError, ValueError):
    """A reward that does not exist, or did not give a figure for each answer; the message says why."""


def refuse_states(model: Any) -> None:
    """Refuse a hybrid model where gradients are to flow through its cache.

    Raises
    ------
    UnsupportedModelError
        When a decoder layer has a running state: transformers writes it in place, and the gradient is lost.
    """
    config = model.config.get_text_config(decoder=True)
    if STATES & set(getattr(config, "layer_types", None) or ()):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be trained with its cache: its layers with linear attention or "
            "convolutions overwrite their state in place, so that no gradient flows through it"
        )
