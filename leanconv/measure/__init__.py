"""Counts and times: what a network needs, in every named convention, and how long it takes on this device."""

from leanconv.measure.counting.layers import Profile, profile
from leanconv.measure.counting.tally import ConventionTable, compare_conventions
from leanconv.measure.hardware.device import describe, label
from leanconv.measure.hardware.lanes import LaneProfile, Lanes, profile_lanes
from leanconv.measure.hardware.systolic import Array, ArrayComparison, ArrayProfile, compare_array, profile_array
from leanconv.measure.timing.latency import Timing, interleave
from leanconv.measure.timing.side_by_side import Comparison, compare

__all__ = [
    "Array", "ArrayComparison", "ArrayProfile", "Comparison", "ConventionTable", "LaneProfile", "Lanes", "Profile",
    "Timing", "compare", "compare_array", "compare_conventions", "describe", "interleave", "label", "profile",
    "profile_array", "profile_lanes",
]  # fmt: skip
