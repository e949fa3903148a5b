"""Counts and times: what a network needs, in every named convention, and how long it takes on this device."""

from leanconv.measure.device import describe, label
from leanconv.measure.lanes import LaneProfile, Lanes, profile_lanes
from leanconv.measure.latency import Timing, interleave
from leanconv.measure.layers import Profile, profile
from leanconv.measure.side_by_side import Comparison, compare
from leanconv.measure.systolic import Array, ArrayComparison, ArrayProfile, compare_array, profile_array
from leanconv.measure.tally import ConventionTable, compare_conventions

__all__ = [
    "Array", "ArrayComparison", "ArrayProfile", "Comparison", "ConventionTable", "LaneProfile", "Lanes", "Profile",
    "Timing", "compare", "compare_array", "compare_conventions", "describe", "interleave", "label", "profile",
    "profile_array", "profile_lanes",
]  # fmt: skip
