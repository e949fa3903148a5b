"""Counts and times: a network's parameters and operations in every named convention, its latency on this device."""

from typing import TYPE_CHECKING

from leanconv.lazy import names_from

if TYPE_CHECKING:
    from leanconv.measure.counting.tally import ConventionTable, compare_conventions
    from leanconv.measure.device import describe, label
    from leanconv.measure.hardware.array_profile import ArrayComparison, ArrayProfile, compare_array, profile_array
    from leanconv.measure.hardware.lanes import LaneProfile, Lanes, profile_lanes
    from leanconv.measure.hardware.systolic import Array
    from leanconv.measure.layers import Profile, profile
    from leanconv.measure.timing.latency import Timing, interleave
    from leanconv.measure.timing.side_by_side import Comparison, compare

__all__ = [
    "Array", "ArrayComparison", "ArrayProfile", "Comparison", "ConventionTable", "LaneProfile", "Lanes", "Profile",
    "Timing", "compare", "compare_array", "compare_conventions", "describe", "interleave", "label", "profile",
    "profile_array", "profile_lanes",
]  # fmt: skip

# Loaded on first use: a device's name needs no counts, and those need PyTorch's, which import Triton.
_FILES = {
    "counting.tally": "ConventionTable compare_conventions",
    "device": "describe label",
    "hardware.array_profile": "ArrayComparison ArrayProfile compare_array profile_array",
    "hardware.lanes": "LaneProfile Lanes profile_lanes",
    "hardware.systolic": "Array",
    "layers": "Profile profile",
    "timing.latency": "Timing interleave",
    "timing.side_by_side": "Comparison compare",
}
if not TYPE_CHECKING:  # a checker must know every name
    __getattr__ = names_from(__name__, _FILES)
