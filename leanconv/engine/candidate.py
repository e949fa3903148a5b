"""Candidate: one way of running a model, as `optimize` sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leanconv.engine.ahead import Work
from leanconv.engine.workbench import Workbench
from leanconv.extras import installed

ModelForm = Callable[..., Any]  # has the call signature of the model and returns what the model returns


@dataclass(frozen=True)
class Candidate:
    """A registered engine. A file of this folder defines it, and `engine/candidates.py` lists it.

    Attributes:
        name: the engine's name in `engines=`.
        why_not: returns why the engine cannot run this model in this dtype (None: the model's own), or None.
        seconds: estimates the longest preparation. The engine is skipped if less of the budget is left.
        prepare: builds the form. The table of choices shows any exception as the reason.
        any_shape: whether the form also runs inputs of other shapes.
        widens: whether to try the engine in float32 too if the model computes in half precision.
        int8_s: estimates what a form in torch.int8 takes beside `seconds`: ranges, and the loss on the data.
        lacks: returns what to install to make the engine faster on this machine, or "".
        ahead: returns what another process can do for a form before its turn, so that `prepare` finds a full cache.
        opens: opens the files of a stored form for inputs of a shape, or None if its forms cannot be stored. A form
            that can has an attribute `store`, a function that writes these files into a folder.
    """

    name: str
    why_not: Callable[[Workbench, torch.dtype | None], str | None]
    seconds: Callable[[Workbench], float]
    prepare: Callable[[Workbench, torch.dtype | None], ModelForm]
    any_shape: bool = False
    widens: bool = False
    lacks: Callable[[], str] = str
    opens: Callable[[Path, torch.Size], ModelForm] | None = None
    int8_s: Callable[[Workbench], float] | None = None
    ahead: Callable[[Workbench, torch.dtype | None], Work] | None = None

    def estimate(self, bench: Workbench, dtype: torch.dtype | None) -> float:
        """Estimate the seconds that the preparation in a type takes."""
        more = self.int8_s(bench) if dtype is torch.int8 and self.int8_s is not None else 0.0
        return self.seconds(bench) + more


def missing(*libraries: str) -> str | None:
    """Return which of these libraries of the export extra are not installed, and the command that installs them."""
    gone = [name for name in libraries if not installed(name)]
    return f"{' and '.join(gone)} not installed: pip install 'leanconv[export]'" if gone else None
