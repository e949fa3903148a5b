"""leanconv: efficient convolutions that are measurably faster.

>>> import leanconv as lc
>>> plan = lc.plan(model, inputs, to="hetconv(part=4)")
>>> lc.apply_(model, plan)
>>> fast = lc.optimize(model.eval(), inputs)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

# The room of each public name. Names load on first use (PEP 562): `leanconv --help` must not wait for torch.
_HOME = {
    "names": "nn",
    "get": "nn",
    "load": "runs",
    "plan": "convert",
    "apply_": "convert",
    "fold_": "convert",
    "optimize": "engine",
    "optimize_training": "train.step.optimize_training",
    "profile": "measure",
    "compare": "measure",
    "export": "deploy",
    "search": "planner",
}

__all__ = [
    "apply_", "compare", "export", "fold_", "get", "load", "names", "optimize",
    "optimize_training", "plan", "profile", "search",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"leanconv.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name == "nn":
        return import_module("leanconv.nn")
    raise AttributeError(f"module 'leanconv' has no attribute {name!r}; it has {', '.join(sorted(_HOME))} and nn")


def __dir__() -> list[str]:
    return [*__all__, "__version__", "nn"]
