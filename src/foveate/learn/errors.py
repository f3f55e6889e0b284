"""What calibration raises on purpose."""

from foveate.errors import FoveateError


class CalibrationError(FoveateError, ValueError):
    """Samples, settings or an earlier run that a calibration cannot use; the message says why."""
