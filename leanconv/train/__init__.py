"""Training, scoring and prediction: data, recipes, the loop. Import each name from its own file.

Those for a loop of one's own are here too: `from leanconv.train import Distillation, reconstruct_`.
"""

from typing import TYPE_CHECKING

from leanconv.lazy import names_from

if TYPE_CHECKING:
    from leanconv.train.distillation.distill import Distillation as Distillation
    from leanconv.train.distillation.reconstruct import reconstruct_ as reconstruct_

# Loaded on first use: recipes are read before PyTorch is imported.
_FILES = {"distillation.distill": "Distillation", "distillation.reconstruct": "reconstruct_"}
if not TYPE_CHECKING:  # a checker must know every name
    __getattr__ = names_from(__name__, _FILES)
