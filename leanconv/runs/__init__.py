"""Runs: run folders and model references."""

from leanconv.runs.folder import RunFolder
from leanconv.runs.kinds import join
from leanconv.runs.reference import load
from leanconv.runs.weights import load_weights, save_weights

__all__ = ["RunFolder", "join", "load", "load_weights", "save_weights"]
