"""Calibration of BTP."""
