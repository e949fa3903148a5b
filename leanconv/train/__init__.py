"""Training, scoring and prediction: data, recipes, the loop. Import each name from its own file.

Those for a loop of one's own are here too: `from leanconv.train import Distillation, reconstruct_`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanconv.train.distillation.distill import Distillation as Distillation
    from leanconv.train.distillation.reconstruct import reconstruct_ as reconstruct_

# Loaded on first use: recipes are read before PyTorch is imported.
_HOME = {"Distillation": "distill", "reconstruct_": "reconstruct"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"leanconv.train.distillation.{_HOME[name]}"), name)
    raise AttributeError(f"module 'leanconv.train' has no attribute {name!r}")
