"""Engine: find a model's fastest form on this device by measurement, and diagnose what the device can run."""

from leanconv.engine.choices import Choice, Choices
from leanconv.engine.machine import Diagnosis, diagnose
from leanconv.engine.optimize import optimize
from leanconv.engine.optimized import Optimized

__all__ = ["Choice", "Choices", "Diagnosis", "Optimized", "diagnose", "optimize"]
