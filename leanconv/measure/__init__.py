"""Counts and times: what a network needs, in every named convention, and how long it takes on this device."""

from leanconv.measure.device import describe, label
from leanconv.measure.latency import Timing, interleave

__all__ = ["Timing", "describe", "interleave", "label"]
