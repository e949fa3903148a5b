"""int8: calibration pictures and the loss on them, the quantisers of other runtimes, and which layers cost most."""

from leanconv.deploy.int8.calibration import MAX_LOSS, Calibration, Metric

__all__ = ["MAX_LOSS", "Calibration", "Metric"]
