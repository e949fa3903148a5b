"""From a form and its weights to a bound primitive."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound import tiles
from leanconv.kernels.cpu.bound.base import Bound
from leanconv.kernels.cpu.bound.gated_sum import BoundGatedSum
from leanconv.kernels.cpu.bound.grouped import BoundGrouped
from leanconv.kernels.cpu.bound.resample import BoundMaxPool, BoundUpsample
from leanconv.kernels.cpu.bound.separable import BoundSeparable
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.forms import Form
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped, merge_groups
from leanconv.ops.pool import MaxPool
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample

# The class that binds each kind of form.
BINDERS: dict[type, Callable[..., Bound]] = {
    Separable: BoundSeparable,
    Grouped: BoundGrouped,
    GatedSum: BoundGatedSum,
    Upsample: BoundUpsample,
    MaxPool: BoundMaxPool,
}


def bind(form: Form, weights: Sequence[Tensor], target: Target | None = None) -> Bound:
    """A primitive with its weights packed, to be called with maps alone: the arguments of its function in `ops`.

    Takes maps of float32 or bfloat16, and its results have the same dtype. Compiles a kernel for each new kind of maps,
    or loads it from the cache. Safe in many threads.

    Raises: MissingExtra without halide.
    """
    halide()
    return BINDERS[type(form)](form, [_plain(w) for w in weights], target)


def bind_to_tiles(form: Form, weights: Sequence[Tensor], target: Target | None = None) -> Bound | None:
    """Likewise, products of bfloat16 maps on tiles; None where `bound.tiles.why_not` has a reason.

    Groups are multiplied as the dense convolution that they equal: on Sapphire Rapids HetConv(part=4) then takes .12 ms
    for 64 to 64 channels at 56×56, and .81 ms in vectors.
    """
    halide()
    target = target or Target()
    if tiles.why_not(form, target):
        return None
    if isinstance(form, Grouped):
        form, weights = merge_groups(form, weights, 1)
    return tiles.TILED[type(form)](form, [_plain(w) for w in weights], target)


def _plain(weights: Tensor) -> Tensor:
    """`weights` with the CPU's NaN: a GPU's has all bits set, and rounding to bfloat16 would turn it into -0."""
    missing = weights.isnan()
    return weights.masked_fill(missing, torch.nan) if missing.any() else weights
