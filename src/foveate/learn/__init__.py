"""What is learned from a model: calibration of BTP's stages."""

from foveate.learn.btp.calibrate import Settings, calibrate_btp
from foveate.learn.curve import Curve, TurnCurve
from foveate.learn.errors import CalibrationError
from foveate.learn.stages import stages_from_curve

__all__ = ["CalibrationError", "Curve", "Settings", "TurnCurve", "calibrate_btp", "stages_from_curve"]
