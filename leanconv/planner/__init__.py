"""Planner: which operator in which layer, by measured cost and measured harm (`search`)."""

from leanconv.planner.found import FoundPlan
from leanconv.planner.search import search

__all__ = ["FoundPlan", "search"]
