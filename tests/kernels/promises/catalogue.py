"""Every bound kernel as a case: its form, what is forced, its reference, and data for it, random or small integers.

A new form or pipeline without a case fails a test of `test_exact.py`.
"""

import inspect
import pkgutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module

import pytest
import torch

from leanconv.kernels.cpu import Target, bind, pipelines
from leanconv.kernels.cpu.bound import base, gated_sum, resample, separable_builder, separable_strassen
from leanconv.kernels.cpu.bound import grouped as grouped_room
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.tuning.cpu import this_cpu
from leanconv.ops.gated_sum import GatedSum, gated_pointwise
from leanconv.ops.grouped import Grouped, grouped
from leanconv.ops.pool import MaxPool, max_pool
from leanconv.ops.separable import Separable, Stencil, separable
from leanconv.ops.upsample import Upsample, upsample
from tests.kernels.tolerance import laid_out, weights_of

AROUND = (1, 1, 1, 1)
ROOMS = (separable_builder, separable_strassen, grouped_room, resample, gated_sum)  # where kernels are asked for


def stencil(channels, kernel, **rest):
    return Stencil(0, channels, kernel, **rest)


DIRECT = {
    "1x1": Separable((5, 12), (), 37, bias=True, activation="relu", residual=True, gate=True, average=True),
    "1x1 of many channels": Separable((300,), (), 19, average=True),  # split-K
    "3x3": Separable((19,), ((stencil(19, (3, 3), padding=AROUND),),), activation="relu6", residual=True, average=True),
    "side by side": Separable(
        (9, 8),
        ((Stencil(0, 7, identity=True), Stencil(7, 4, (3, 3), padding=AROUND, bias=True),
          Stencil(11, 3, (1, 5), padding=(0, 0, 2, 2)), Stencil(14, 3, (5, 1), padding=(2, 2, 0, 0))),),
    ),
    "one after the other": Separable(
        (5,),
        ((stencil(5, (2, 2), padding=(0, 1, 1, 0), bias=True, activation="relu"),),
         (stencil(5, (1, 5), stride=(1, 2), padding=(0, 0, 2, 2)),), (stencil(5, (5, 1), padding=(2, 2, 0, 0)),)),
    ),
    "3x3, 3x3, 1x1": Separable(
        (12,),
        ((stencil(12, (3, 3), padding=AROUND),), (stencil(12, (3, 3), dilation=(2, 2), padding=(2, 2, 2, 2)),)),
        20, bias=True, activation="relu", average=True,
    ),
    "3x3 of stride 2, 1x1": Separable(
        (16,), ((stencil(16, (3, 3), stride=(2, 2), padding=AROUND, bias=True, activation="relu6"),),), 32, bias=True,
        residual=True, gate=True,
    ),
    "7x7, 1x1 of many": Separable(  # many taps, split-K
        (200,), ((stencil(200, (7, 7), padding=(3, 3, 3, 3), bias=True),),), 9, average=True
    ),
    "1x3 and 3x1, 1x1": Separable(
        (6,), ((Stencil(0, 6, (1, 3), padding=(0, 0, 1, 1)), Stencil(0, 6, (3, 1), padding=(1, 1, 0, 0))),), 7
    ),
    "groups beside a 1x1": Grouped(
        (16,), 32, (3, 3), padding=AROUND, groups=4, pointwise=True, bias=True, activation="relu", average=True
    ),
    "groups, dealt": Grouped(
        (15,), 9, (3, 3), (2, 2), (1, 1), AROUND, 3, interleaved=True, pointwise=True, bias=True, residual=True,
        average=True,
    ),
    "groups, 1x1": Grouped(
        (7, 5), 12, (3, 3), padding=AROUND, groups=2, bias=True, inner_activation="relu", project=19,
        project_bias=True, residual=True,
    ),
    "groups of many": Grouped((140,), 28, (3, 3), groups=2, pointwise=True, bias=True),  # split-K
    "dense": Grouped((3,), 13, (5, 2), (1, 2), (1, 3), (0, 2, 3, 1), average=True),
    "image in planes": Grouped((3,), 16, (3, 3), (2, 2), padding=AROUND, bias=True, average=True),
    "gated sum": GatedSum((5, 6), 23, bias=True, affine=True, activation="relu", average=True),
    "upsampling": Upsample((6, 3), 5, bias=True, activation="relu", average=True),
    "upsampling by 3": Upsample((16,), 8, 3),
    "max-pooling": MaxPool(19, (3, 3), (2, 2), AROUND, average=True),
}  # fmt: skip
# Kernels that save products, float32 alone: forms, and what forces them.
SEPARABLE_STRASSEN = Separable(
    (128,), ((stencil(128, (3, 3), padding=AROUND, bias=True, activation="relu"),),), 96, bias=True, average=True
)
SAVING = {
    "Strassen": Separable((96,), (), 64, bias=True, residual=True, average=True),
    "3x3, Strassen": SEPARABLE_STRASSEN,
    "Winograd": Grouped((12,), 20, (3, 3), padding=AROUND, bias=True, average=True),
    "Winograd, groups": DIRECT["groups beside a 1x1"],
    "Winograd, groups of many": replace(DIRECT["groups of many"], channels=(300,)),
}


def pipelines_here():
    """Every function that defines a kernel: of the rooms of `pipelines`, those of a core and its tile or tiles."""
    found = set()
    for each in pkgutil.iter_modules(pipelines.__path__):
        room = import_module(f"{pipelines.__name__}.{each.name}")
        for function in vars(room).values():
            if inspect.isfunction(function) and function.__module__ == room.__name__:
                names = list(inspect.signature(function).parameters)
                found |= {function} if names in (["core", "tile"], ["core", "tiles"]) else set()
    return found


@dataclass(frozen=True)
class Case:
    """A kernel on maps of one number type.

    Attributes:
        cpu: what is different about the processor: whether it multiplies pairs of bfloat16, the size of its cache.
    """

    name: str
    dtype: torch.dtype = torch.float32
    pairs: bool = False

    @property
    def form(self):
        return (DIRECT | SAVING)[self.name]

    def __str__(self):
        kind = "float32" if self.dtype == torch.float32 else "pairs of bfloat16" if self.pairs else "bfloat16"
        return f"{self.name}, {kind}"

    def bound(self, weights, l2=None):
        """The bound kernel; `l2`: bytes of the second-level cache that its blocks are for."""
        changed = {} if l2 is None else {"l2": l2}
        arithmetic = "direct" if self.name in DIRECT else "lean"
        target = Target(replace(this_cpu(), bf16=self.pairs, **changed), arithmetic)
        made = bind(self.form, weights, target)
        if self.name.startswith("Winograd"):
            made.method = "winograd"
        return made


def cases():
    """Every kernel in every number type that it takes and this processor computes."""
    pairs = [True] if this_cpu().bf16 else []
    short = [Case(name, torch.bfloat16, each) for name in DIRECT for each in (False, *pairs)]
    return [Case(name) for name in (*DIRECT, *SAVING)] + short


@contextmanager
def forced(case):
    """Within it Strassen's kernels are used for small maps too, where the case asks for them."""
    with pytest.MonkeyPatch.context() as patch:
        if "Strassen" in case.name:
            for place in (base, separable_strassen):
                patch.setattr(place, "strassen_tile", lambda cpu, o, pixels, *more: Tile(3, 32, 16))
        yield


def weights_for(form, draw):
    """Weights in the form's order; `draw(size)` gives the numbers."""
    match form:
        case Separable():
            sizes = [w.shape for w in weights_of(form)]
        case Grouped():
            c, o, wide = sum(form.channels), form.out_channels, form.project
            sizes = [(o, c // form.groups, *form.kernel)] + [(o, c)] * form.pointwise + [(o,)] * form.bias
            sizes += [] if wide is None else [(wide, o)] + [(wide,)] * form.project_bias
        case GatedSum():
            o = form.out_channels
            sizes = [(o, sum(form.channels))] + [(o,)] * form.bias + [(o,), (o,)] * form.affine
        case Upsample():
            k, o = form.factor, form.out_channels
            sizes = [(sum(form.channels), o, k, k)] + [(o,)] * form.bias
        case MaxPool():
            sizes = []
    return [draw(size) for size in sizes]


def maps_for(form, n, h, w, draw):
    """The maps of `Bound.run` in its order; None for those that the form has not."""
    match form:
        case MaxPool():
            return [draw((n, form.channels, h, w))]
        case GatedSum():
            return [draw((n, c, h, w)) for c in (form.out_channels, *form.channels)]
    maps = [draw((n, c, h, w)) for c in form.channels]
    if isinstance(form, Separable | Grouped):
        maps.append(draw((n, form.width, *form.size(h, w))) if form.residual else None)
    if isinstance(form, Separable):
        maps.append(draw((n, form.middle)).abs() if form.gate else None)
    return maps


def laid(case, maps, how="channels_last"):
    """The maps in the case's number type and a layout; an image stays in planes, a gate is float32."""
    planes = case.name == "image in planes"
    made = []
    for x in maps:
        if x is None or x.dim() != 4:
            made.append(x)
        else:
            made.append(x.to(case.dtype) if planes else laid_out(x.to(case.dtype), how))
    return made


def reference(form, maps, weights, averages=()):
    """The primitive's reference on the same maps."""
    given = [x for x in maps if x is not None]
    match form:
        case Separable():
            *inputs, residual, gate = maps
            return separable(inputs, weights, form, residual, gate)
        case Grouped():
            return grouped(maps[:-1], weights, form, maps[-1])
        case GatedSum():
            return gated_pointwise(
                given[0], given[1:], weights, form, *([averages[0], averages[1:]] if averages else [])
            )
        case Upsample():
            return upsample(given, weights, form)
    return max_pool(given[0], form)


def wide(tensors):
    return [None if t is None else t.double() for t in tensors]
