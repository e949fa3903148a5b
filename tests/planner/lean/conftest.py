"""The fixtures of `quick_way` for all tests here."""

from tests.planner.lean.quick_way import broken, dense, way

__all__ = ["broken", "dense", "way"]
