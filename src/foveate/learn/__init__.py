"""What is learned from a model: calibration of BTP's stages."""

from foveate.learn.btp.calibrate import CalibrationSettings, calibrate_btp
from foveate.learn.btp.curve import Curve, TurnCurve, stages_from_curve
from foveate.learn.errors import CalibrationError

__all__ = ["CalibrationError", "CalibrationSettings", "Curve", "TurnCurve", "calibrate_btp", "stages_from_curve"]
