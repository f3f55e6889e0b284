"""What calibration and training raise on purpose."""

from foveate.errors import FoveateError


class CalibrationError(FoveateError, ValueError):
    """Samples, settings or an earlier run that a calibration cannot use; the message says why."""


class TrainingDataError(FoveateError, ValueError):
    """Grounded samples that a training cannot use; the message names the file and the line, and says why."""
