"""Trials: run every form on several inputs and compare its answers with the model's."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.agreement import Error
from leanconv.deploy.calls import Frame
from leanconv.deploy.verify import InFloat64, Reference, has_nan
from leanconv.measure.timing.latency import CLOCKS
from leanconv.probes import LIKE, resampled
from leanconv.running import Call, cloned

# Inputs of the trials beside the caller's own values: FIRST for every form, LATER only for a winner. Low contrast is
# the hardest: statistics computed in one pass lose it. A coarser type loses low contrast by itself.
FIRST, LATER = "low contrast", ("offset", "large", "small")
COARSE_FIRST, COARSE_LATER = LIKE, ("small",)
# A share of the answer. If rounding alone changes the model's answer by more, that input cannot judge a form.
CHAOS = 1e-2
ModelForm = Callable[..., Any]
Still = Callable[[], AbstractContextManager[object]]


class Trials:
    """The trials of one model: on the given call and on inputs resampled from it. The model runs once per input."""

    def __init__(self, model: nn.Module, frame: Frame, tensors: list[Tensor], answer: Any, clock: str) -> None:
        """`clock`: the key in `measure.timing.latency.CLOCKS` of the clock that times the calls."""
        self._model, self._frame, self._tensors = model, frame, tensors
        self._exact, self._clock = InFloat64(model), clock
        self._infinite = _infinite(answer)
        self._seen: dict[str, Reference | None] = {"": Reference(self._exact, *self._call(tensors), answer)}

    def first(self, form: ModelForm, dtype: torch.dtype | None, still: Still = nullcontext) -> tuple[Error, float]:
        """Return a form's largest error on the given inputs and on hard ones, and the seconds of its second call.

        `still`: the second call is made inside `with still():`.
        """
        seen = self._held(form, dtype, "")
        if not seen.passes:
            return seen, 0.0
        kind = FIRST if dtype is None else COARSE_FIRST
        kind = kind if self._reference(kind) else ""
        with still():
            answer, seconds = self._called(form, kind)
        again = self._error(answer, dtype, kind)
        return max(seen, again, key=_excess), seconds

    def seconds(self, form: ModelForm, still: Still = nullcontext) -> float:
        """Return the seconds of a form's second call on the given inputs. Its answer is not looked at."""
        self._called(form, "")
        with still():
            return self._called(form, "")[1]

    def later(self, form: ModelForm, dtype: torch.dtype | None) -> Error:
        """Return its largest error on all other inputs. int8 is judged on the calibration data alone."""
        if dtype is torch.int8:
            return Error(0.0, 0.0)
        kinds = [kind for kind in (LATER if dtype is None else COARSE_LATER) if self._reference(kind)]
        return max((self._held(form, dtype, kind) for kind in kinds), key=_excess, default=Error(0.0, 0.0))

    def _held(self, form: ModelForm, dtype: torch.dtype | None, kind: str) -> Error:
        """Return the error on one kind of inputs."""
        return self._error(self._called(form, kind)[0], dtype, kind)

    def _error(self, answer: Any, dtype: torch.dtype | None, kind: str) -> Error:
        reference = self._reference(kind)
        assert reference is not None
        return reference.error(answer, dtype, CHAOS if kind else math.inf)

    def _called(self, form: ModelForm, kind: str) -> tuple[Any, float]:
        """Return the answer to one kind of inputs, and the seconds of the call."""
        args, kwargs = self._call(self._inputs(kind))
        now = CLOCKS[self._clock]
        start = now()
        with torch.no_grad():
            answer = form(*args, **kwargs)
        if self._tensors and self._tensors[0].device.type == "cuda":
            torch.cuda.synchronize(self._tensors[0].device)
        return answer, now() - start

    def _reference(self, kind: str) -> Reference | None:
        """Return the model's answer to one kind of inputs. None if the model fails on them or adds NaN or infinity."""
        if kind not in self._seen:
            self._seen[kind] = None
            inputs = self._inputs(kind)
            args, kwargs = self._call(inputs)
            try:
                with torch.no_grad():
                    answer = self._model(*args, **kwargs)
            except Exception:  # random numbers may be outside the range that a model accepts
                return None
            if not has_nan(answer) and _infinite(answer) <= self._infinite:
                self._seen[kind] = Reference(self._exact, *self._call(inputs), answer)
        return self._seen[kind]

    def _inputs(self, kind: str) -> list[Tensor]:
        dice = torch.Generator().manual_seed(0)
        return [resampled(t, t.shape, dice, kind) for t in self._tensors] if kind else self._tensors

    def _call(self, tensors: list[Tensor]) -> Call:
        """Return cloned arguments: a model may write into its inputs."""
        args, kwargs = cloned(self._frame.join(tensors))
        return args, kwargs


def _infinite(answer: Any) -> bool:
    return any(bool(t.isinf().any()) for t in Frame.split(answer)[0] if t.is_floating_point())


def _excess(error: Error) -> float:
    return error.excess
