"""leanconv: efficient convolutions that are measurably faster.

>>> import leanconv as lc
>>> plan = lc.plan(model, inputs, to="hetconv(part=4)")
>>> lc.apply_(model, plan)
>>> fast = lc.optimize(model.eval(), inputs)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from leanconv.lazy import names_from
from leanconv.version import __version__ as __version__

if TYPE_CHECKING:
    from leanconv.convert import apply_, fold_, plan
    from leanconv.deploy import export
    from leanconv.engine import optimize
    from leanconv.measure import compare, profile
    from leanconv.nn import get, names
    from leanconv.planner import search
    from leanconv.runs import load
    from leanconv.train.step.optimize_training import optimize_training

# The room of each public name. Names load on first use: `leanconv --help` must not wait for torch.
_ROOMS = {
    "convert": "apply_ fold_ plan",
    "deploy": "export",
    "engine": "optimize",
    "measure": "compare profile",
    "nn": "get names",
    "planner": "search",
    "runs": "load",
    "train.step.optimize_training": "optimize_training",
}

__all__ = [
    "apply_", "compare", "export", "fold_", "get", "load", "names", "optimize",
    "optimize_training", "plan", "profile", "search",
]  # fmt: skip


_public = names_from(__name__, _ROOMS)


def __getattr__(name: str) -> Any:
    return import_module("leanconv.nn") if name == "nn" else _public(name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", "nn"]
