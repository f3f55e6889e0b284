"""What calibration and training raise on purpose."""

from foveate.errors import FoveateError


class CalibrationError(FoveateError, ValueError):
    """Samples, settings or an earlier run that a calibration cannot use; the message says why."""


class TrainingDataError(FoveateError, ValueError):
    """Grounded samples that a training cannot use; the message names the file and the line, and says why."""


class TrainingError(FoveateError, ValueError):
    """Settings, a state or an earlier run that a training cannot use; the message says why."""


class RewardError(FoveateError, ValueError):
    """A reward that does not exist, or did not give a figure for each answer; the message says why."""
