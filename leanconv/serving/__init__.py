"""A run's model at full speed: the fastest engine is found while pictures pass, and kept in the run folder."""

from leanconv.serving.served import Served

__all__ = ["Served"]
