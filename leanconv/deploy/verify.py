"""An answer against the answer it should be, number by number."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.deploy.calls import Frame

# The largest error allowed, as a share of the largest absolute value of the output it stands in. Another runtime adds
# the same numbers in another order; what that costs depends on the number type alone until a network amplifies it.
FLOOR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# A deep network amplifies rounding: the model may then be off by this much more than its own distance from float64 ...
AMPLIFIED = 10.0
# ... but never by more than this share of its output.
CEILING = 5e-2
# Class indices and other whole numbers: the share of them that may differ, because two scores tie.
WHOLE = 1e-3


@dataclass(frozen=True)
class Error:
    """How far an answer is from the model's: largest absolute difference, and as a share of the largest output."""

    absolute: float
    relative: float
    problem: str = ""  # why the two cannot be compared at all

    def ok(self, tolerance: float) -> bool:
        return not self.problem and self.relative <= tolerance

    def __str__(self) -> str:
        return self.problem or f"{self.relative:.1e}"


def difference(expected: Any, given: Any) -> Error:
    """The error of a nested answer. Structure, shapes, dtypes and constants must be the same; NaN equals NaN."""
    (want, frame), (have, other) = Frame.split(expected), Frame.split(given)
    if frame.spec != other.spec or len(want) != len(have):
        return Error(math.inf, math.inf, "another structure of outputs")
    for (i, constant), (j, value) in zip(frame.constants, other.constants, strict=True):
        if i != j or type(constant) is not type(value) or not _same(constant, value):
            return Error(math.inf, math.inf, f"another constant among the outputs: {value!r:.40}, not {constant!r:.40}")
    return tensors_difference(want, have)


def tensors_difference(expected: Sequence[Tensor], given: Sequence[Tensor]) -> Error:
    """The error of a flat answer, tensor by tensor; the worst one counts."""
    if len(expected) != len(given):
        return Error(math.inf, math.inf, f"{len(given)} outputs, not {len(expected)}")
    worst = Error(0.0, 0.0)
    for index, (want, have) in enumerate(zip(expected, given, strict=True)):
        if want.shape != have.shape:
            return Error(math.inf, math.inf, f"output {index}: shape {tuple(have.shape)}, not {tuple(want.shape)}")
        if want.dtype != have.dtype:
            return Error(math.inf, math.inf, f"output {index}: {have.dtype}, not {want.dtype}")
        error = _tensor(want.detach().cpu(), have.detach().cpu())
        if error.problem:
            return Error(math.inf, math.inf, f"output {index}: {error.problem}")
        worst = max(worst, error, key=lambda e: e.relative)
    return worst


def _tensor(want: Tensor, have: Tensor) -> Error:
    if not want.numel():
        return Error(0.0, 0.0)
    if not (want.is_floating_point() or want.is_complex()):
        share = float((want != have).double().mean())
        return Error(share, 0.0 if share <= WHOLE else math.inf)
    if want.is_complex():
        want, have = torch.view_as_real(want), torch.view_as_real(have)
    want, have = want.double(), have.double()
    finite = want.isfinite()
    if not torch.equal(finite, have.isfinite()):
        return Error(math.inf, math.inf, "other numbers are NaN or infinite than the model's")
    special = want[~finite]
    if not torch.equal(special.nan_to_num(), have[~finite].nan_to_num()):
        return Error(math.inf, math.inf, "other numbers are NaN or infinite than the model's")
    want, have = want[finite], have[finite]
    if not want.numel():
        return Error(0.0, 0.0)
    absolute, scale = float((want - have).abs().max()), float(want.abs().max())
    return Error(absolute, absolute / scale if scale else (0.0 if absolute == 0 else math.inf))


def has_nan(value: Any) -> bool:
    """Whether a nested answer has NaN in it: then nothing can be told right from wrong."""
    return any(bool(t.isnan().any()) for t in Frame.split(value)[0] if t.is_floating_point() or t.is_complex())


@torch.no_grad()
def tolerance(model: nn.Module, args: Any, kwargs: Any, answer: Any, *, dtype: torch.dtype | None = None) -> float:
    """The relative error allowed to another form of `model`, from the model's own distance to float64 on this input.

    The floor of the dtype it runs in, or `AMPLIFIED` times the model's own error where that is more, up to `CEILING`.
    """
    tensors = Frame.split(answer)[0]
    types = [t.dtype for t in tensors if t.is_floating_point()] + ([dtype] if dtype is not None else [])
    floor = max((FLOOR.get(each, FLOOR[torch.float32]) for each in types), default=FLOOR[torch.float32])
    try:
        exact = copy.deepcopy(model).double()
        flat, frame = Frame.split((args, kwargs))
        doubled, named = frame.join([t.double() if t.is_floating_point() else t for t in flat])
        truth = Frame.split(exact(*doubled, **named))[0]
        own = tensors_difference([t.to(have.dtype) for t, have in zip(truth, tensors, strict=True)], tensors)
    except Exception:  # a model that cannot run in float64 (fixed dtypes inside) keeps the floor
        return floor
    if own.problem or not math.isfinite(own.relative):
        return floor
    return max(floor, min(AMPLIFIED * own.relative, CEILING))


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except Exception:  # objects whose == does not give a yes or no
        return False
