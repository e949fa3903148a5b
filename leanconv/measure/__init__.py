"""Counts and times: what a network needs, in every named convention, and how long it takes on this device."""

from leanconv.measure.device import describe, label
from leanconv.measure.latency import Timing, interleave
from leanconv.measure.layers import Profile, profile
from leanconv.measure.side_by_side import Comparison, compare

__all__ = ["Comparison", "Profile", "Timing", "compare", "describe", "interleave", "label", "profile"]
