"""The start `init="fit"` of `apply_`: layer by layer, least squares on a few unlabelled batches."""

from leanconv.convert.fit.fitting import Block, Fitting, Job, Result, fit

__all__ = ["Block", "Fitting", "Job", "Result", "fit"]
