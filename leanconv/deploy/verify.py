"""Compare a nested answer with the model's own answer, by the rule of `leanconv.agreement`."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.agreement import Error, compare, incomparable
from leanconv.copies import copied
from leanconv.deploy.calls import Frame

# The largest allowed error, relative to the size of its channel or group. Another runtime adds the same numbers in
# another order. That error depends on the number type alone until a network amplifies it.
FLOOR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def floor(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> float:
    """Return the largest allowed error of an answer `tensors` that was computed in `dtype` (None: its own type)."""
    types = [t.dtype for t in tensors if t.is_floating_point()] + ([dtype] if dtype is not None else [])
    return max((FLOOR.get(each, FLOOR[torch.float32]) for each in types), default=FLOOR[torch.float32])


def difference(expected: Any, given: Any, tolerance: float = 0.0) -> Error:
    """Return the error of a nested answer. Structure, shapes, dtypes and constants must match; NaN equals NaN."""
    (want, frame), (have, other) = Frame.split(expected), Frame.split(given)
    return _unlike(frame, other, len(want), len(have)) or compare(want, have, tolerance)


def _unlike(frame: Frame, other: Frame, wanted: int, found: int) -> Error | None:
    if frame.spec != other.spec or wanted != found:
        return incomparable("another structure of outputs")
    for (i, constant), (j, value) in zip(frame.constants, other.constants, strict=True):
        if i != j or type(constant) is not type(value) or not _same(constant, value):
            return incomparable(f"another constant among the outputs: {value!r:.40}, not {constant!r:.40}")
    return None


class InFloat64:
    """A model in float64, built on first use. It shows the rounding error of the model itself."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @cached_property
    def _exact(self) -> nn.Module:
        return copied(self._model).double()

    @torch.no_grad()
    def __call__(self, args: Any, kwargs: Any, answer: Sequence[Tensor], moved: int = 0) -> list[Tensor] | None:
        """Return the answer in float64. None if the model does not run in float64 or computes in it already.

        `moved`: if not 0, the seed for random changes of the inputs, one rounding of its type for each number.
        """
        if any(t.dtype in (torch.float64, torch.complex128) for t in answer):
            return None
        try:
            tensors, frame = Frame.split((args, kwargs))
            dice = torch.Generator().manual_seed(moved)
            args, kwargs = frame.join([_widened(t, dice if moved else None) for t in tensors])
            found = [t.detach().cpu() for t in Frame.split(self._exact(*args, **kwargs))[0]]
        except Exception:  # the model contains fixed dtypes
            return None
        return found if [t.shape for t in found] == [t.shape for t in answer] else None


def _widened(tensor: Tensor, dice: torch.Generator | None) -> Tensor:
    """Return the tensor in float64, unchanged or with a random rounding error added."""
    if not tensor.is_floating_point():
        return tensor.clone()
    if dice is None:
        return tensor.double()
    step = torch.randn(tensor.shape, generator=dice, dtype=torch.float64).to(tensor.device)
    return tensor * (1 + torch.finfo(tensor.dtype).eps * step)


class Reference:
    """The model's answer to one call, against which other forms are verified."""

    def __init__(self, exact: InFloat64, args: Any, kwargs: Any, answer: Any) -> None:
        self.args, self.kwargs, self.answer = args, kwargs, answer
        self._tensors, self._frame = Frame.split(answer)
        self._exact = exact
        self._known: dict[int, list[Tensor] | None] = {}

    def _in_float64(self, moved: int) -> list[Tensor] | None:
        if moved not in self._known:
            self._known[moved] = self._exact(self.args, self.kwargs, self._tensors, moved)
        return self._known[moved]

    def error(self, given: Any, dtype: torch.dtype | None = None, chaos: float = math.inf) -> Error:
        """Return the error of a form's answer.

        Args:
            dtype: the type that the form computes in (None: the model's own).
            chaos: the limit of `agreement.compare`.
        """
        have, other = Frame.split(given)
        if unlike := _unlike(self._frame, other, len(self._tensors), len(have)):
            return unlike
        own = [torch.finfo(t.dtype).eps for t in self._tensors if t.is_floating_point()]
        coarser = max(1.0, torch.finfo(dtype).eps / max(own)) if dtype is not None and own else 1.0
        return compare(self._tensors, have, floor(self._tensors, dtype), self._in_float64, coarser, chaos)


def has_nan(value: Any) -> bool:
    """Whether a nested answer contains NaN. Then nothing can be verified against it."""
    return any(bool(t.isnan().any()) for t in Frame.split(value)[0] if t.is_floating_point() or t.is_complex())


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except Exception:  # objects whose == returns no truth value
        return False
