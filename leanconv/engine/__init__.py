"""Engine: a model's fastest form on this device, by measurement; and what this device can run at all."""

from leanconv.engine.choices import Choice, Choices
from leanconv.engine.machine import Diagnosis, diagnose
from leanconv.engine.optimize import optimize
from leanconv.engine.optimized import Optimized

__all__ = ["Choice", "Choices", "Diagnosis", "Optimized", "diagnose", "optimize"]
