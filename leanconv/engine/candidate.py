"""Candidate: one way of running a model, as `optimize` sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from leanconv.engine.workbench import Workbench
from leanconv.extras import installed

Form = Callable[..., Any]  # called exactly as the model is, and gives what the model gives


@dataclass(frozen=True)
class Candidate:
    """A registered engine: a file of this folder makes one, `engine/candidates.py` lists it.

    Attributes:
        name: the word for `engines=`.
        why_not: why it cannot run this model here in this dtype (None: the model's own), or None if it can.
        seconds: what its preparation takes at the most, about; it is not begun with less of the budget left.
        prepare: makes the form. Whatever it raises becomes the reason in the table of choices.
        any_shape: whether the form also runs inputs of other shapes than the given.
        widens: whether it is tried in float32 too where the model computes in half precision.
        lacks: what would make it better on this machine, with the way to get it; "" where nothing would.
    """

    name: str
    why_not: Callable[[Workbench, torch.dtype | None], str | None]
    seconds: Callable[[Workbench], float]
    prepare: Callable[[Workbench, torch.dtype | None], Form]
    any_shape: bool = False
    widens: bool = False
    lacks: Callable[[], str] = str


def missing(*libraries: str) -> str | None:
    """The reason for libraries of the export extra that are not installed."""
    gone = [name for name in libraries if not installed(name)]
    return f"{' and '.join(gone)} not installed: pip install 'leanconv[export]'" if gone else None
