"""Aha! When has a model seen enough? Adaptive video segmentation and highlight detection."""

__version__ = "0.1.0"
