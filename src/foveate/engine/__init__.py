"""Attaching to a model and removing tokens for real."""

from foveate.engine.attach import Handle, attach, detach
from foveate.engine.report import Prefill, Report, Stage

__all__ = ["Handle", "Prefill", "Report", "Stage", "attach", "detach"]
