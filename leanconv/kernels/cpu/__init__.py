"""Kernels for this machine's CPU, written in Halide."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.base import Bound
from leanconv.kernels.cpu.bound.gated_sum import BoundGatedSum, global_average
from leanconv.kernels.cpu.bound.grouped import BoundGrouped
from leanconv.kernels.cpu.bound.resample import BoundMaxPool, BoundUpsample
from leanconv.kernels.cpu.bound.separable import BoundSeparable
from leanconv.kernels.cpu.bound.split import BoundSplit
from leanconv.kernels.cpu.tuning.cpu import Cpu, this_cpu
from leanconv.ops.forms import Form
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.pool import MaxPool
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample

__all__ = ["BINDERS", "Bound", "Cpu", "bind", "bind_split", "global_average", "this_cpu"]

# Form -> the class that binds it.
BINDERS: dict[type[Form], Any] = {
    Separable: BoundSeparable,
    Grouped: BoundGrouped,
    GatedSum: BoundGatedSum,
    Upsample: BoundUpsample,
    MaxPool: BoundMaxPool,
}


def bind(form: Form, weights: Sequence[Tensor], cpu: Cpu | None = None) -> Bound:
    """A primitive with its weights packed, to be called with maps alone: the arguments of its function in `ops`.

    Takes maps of float32 or bfloat16 (and gives the same). Compiles when it first meets maps of a new kind, or finds
    what was compiled before. Safe in many threads.

    Args:
        cpu: the processor that schedules are chosen for (default: this one). The code is compiled for this one.
    Raises: MissingExtra without halide.
    """
    from leanconv.kernels.cpu.pipelines.frontend import halide

    halide()
    bound: Bound = BINDERS[type(form)](form, [_plain(w) for w in weights], cpu)
    return bound


def bind_split(
    first: Separable | Grouped,
    first_weights: Sequence[Tensor],
    second: GatedSum,
    second_weights: Sequence[Tensor],
    cpu: Cpu | None = None,
) -> BoundSplit:
    """Both passes of SPConv or SPLConv as one primitive, to be called with the map: its first channels go through
    `first`, the others are `second`'s.

    Raises: BadInput unless the two fit together; MissingExtra without halide.
    """
    return BoundSplit(bind(first, first_weights, cpu), bind(second, second_weights, cpu))  # type: ignore[arg-type]


def _plain(weights: Tensor) -> Tensor:
    """`weights`, NaN as the CPU makes it: a GPU's has all bits set, and rounding to bfloat16 would make -0 of it."""
    missing = weights.isnan()
    return weights.masked_fill(missing, torch.nan) if missing.any() else weights
