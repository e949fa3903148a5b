"""The dynamic axes of an export: their dimensions, the sizes that the model allows, and the sizes to verify."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from leanconv.deploy.calls import Frame
from leanconv.deploy.failures import first_line
from leanconv.errors import BadInput, UnknownName
from leanconv.probes import KINDS, LIKE, resampled

AXES = ("batch", "height", "width")
# Candidate steps of a size. Networks with k halvings take multiples of 2^k (timm, smp: up to 64).
STEPS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the three axes. None if the inputs do not have the axis."""

    batch: int
    height: int | None
    width: int | None

    def to_dict(self) -> dict[str, int | None]:
        return {"batch": self.batch, "height": self.height, "width": self.width}

    def __str__(self) -> str:
        return "x".join(str(v) for v in (self.batch, self.height, self.width) if v is not None)


GIVEN_VALUES = "the given values"
Look = tuple[Sizes, tuple[str, ...]]  # one comparison of file and model: the sizes, the kinds of values


class Dynamic:
    """A call that can be repeated at other sizes of the dynamic axes.

    Axis "batch" is dimension 0 of every tensor that has the first tensor's length there. Axes "height" and "width" are
    the last two dimensions of 4-D tensors. If their resolutions differ, all grow by the same factor.
    """

    place: ClassVar[tuple[int, int]] = (2, 3)  # dimensions of height and width
    any_size: ClassVar[bool] = False  # whether the model takes every size of its dynamic axes

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Sequence[str]) -> None:
        dynamic = (dynamic,) if isinstance(dynamic, str) else tuple(dynamic)
        for axis in dynamic:
            if axis not in AXES:
                raise UnknownName(f"unknown dynamic axis {axis!r}; known: {', '.join(AXES)}")
        self.tensors, self.frame = Frame.split((args, kwargs))
        if not self.tensors:
            raise BadInput("the inputs hold no tensor: nothing to export")
        if any(not t.numel() for t in self.tensors):
            raise BadInput(f"an example input is empty ({tuple(self.tensors[0].shape)}): give at least one sample")
        self.dynamic, self.axes = dynamic, self._find(dynamic)
        image = next((t for t in self.tensors if t.dim() == 4), None)
        batch = self.tensors[0].shape[0] if self.tensors[0].dim() else 1
        self.given = Sizes(batch, *((image.shape[i] for i in self.place) if image is not None else (None, None)))
        self._generator = torch.Generator().manual_seed(0)

    def _find(self, dynamic: Sequence[str]) -> dict[int, dict[int, str]]:
        first, axes = self.tensors[0], {}
        for index, tensor in enumerate(self.tensors):
            dims: dict[int, str] = {}
            if "batch" in dynamic and tensor.dim() and first.dim() and tensor.shape[0] == first.shape[0]:
                dims[0] = "batch"
            if tensor.dim() == 4:
                dims |= {dim: axis for dim, axis in zip(self.place, AXES[1:], strict=True) if axis in dynamic}
            axes[index] = dims
        for axis in dynamic:
            if not any(axis in dims.values() for dims in axes.values()):
                shapes = ", ".join(str(tuple(t.shape)) for t in self.tensors)
                raise BadInput(f"dynamic axis {axis!r}: no input of shape {shapes} has it")
        return axes

    def call(self, sizes: Sizes, kind: str = LIKE) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the given arguments, or random ones of a kind at these sizes."""
        tensors = self.tensors
        if kind != GIVEN_VALUES:
            tensors = [self._tensor(index, tensor, sizes, kind) for index, tensor in enumerate(self.tensors)]
        args, kwargs = self.frame.join(tensors)
        return args, kwargs

    def _tensor(self, index: int, tensor: Tensor, sizes: Sizes, kind: str) -> Tensor:
        shape = list(tensor.shape)
        for dim, axis in self.axes[index].items():
            new, old = getattr(sizes, axis), getattr(self.given, axis)
            if shape[dim] * new % old:
                raise BadInput(f"dynamic axis {axis!r}: inputs of {old} and {shape[dim]} cannot both grow to {new}")
            shape[dim] = shape[dim] * new // old
        return resampled(tensor, shape, self._generator, kind)

    def step(self, model: nn.Module, axis: str) -> int:
        """Return the step in which this axis can grow. Raises BadInput if the model takes the example's size only."""
        size, reason = getattr(self.given, axis), ""
        for step in STEPS:
            try:
                for times in (1, 3):
                    args, kwargs = self.call(self._with(**{axis: size + times * step}))
                    with torch.no_grad():
                        model(*args, **kwargs)
            except Exception as error:  # a model may raise anything at a size that it does not take
                reason = first_line(error)
                continue
            return step
        raise BadInput(f"the model takes no {axis} but {size} ({reason}); leave {axis!r} out of dynamic")

    def _with(self, **changed: int) -> Sizes:
        return Sizes(**{**self.given.to_dict(), **changed})  # type: ignore[arg-type]

    def plan(self, model: nn.Module) -> tuple[Sizes, list[Look]]:
        """Return the sizes to trace at, and the comparisons: batch 1, 2, 5, three heights, widths, each kind once."""
        steps = {axis: self.step(model, axis) for axis in self.dynamic if axis != "batch"}
        # The traced sizes must differ from each other and from 1. The tracer would treat equal ones as one symbol.
        trace = self.given
        if "batch" in self.dynamic:
            trace = Sizes(max(2, trace.batch), trace.height, trace.width)
        for axis, step in steps.items():
            size = getattr(trace, axis)
            others = [v for name, v in trace.to_dict().items() if name != axis]
            while size == 1 or size in others:
                size += step
            trace = Sizes(**{**trace.to_dict(), axis: size})  # type: ignore[arg-type]
        # Compare at larger sizes only: at smaller ones an inner map may shrink to one pixel, which torch.export fixes.
        looks = [self.given]
        for batch, down, right in ((1, 0, 0), (2, 1, 2), (5, 3, 1), (1, 1, 0), (1, 0, 3)):
            sizes = self.given.to_dict()
            if "batch" in self.dynamic:
                sizes["batch"] = batch
            for axis, times in (("height", down), ("width", right)):
                if axis in steps:
                    sizes[axis] = (sizes[axis] or 0) + times * steps[axis]
            looks.append(Sizes(**sizes))  # type: ignore[arg-type]
        kinds: dict[Sizes, list[str]] = {look: [] for look in looks}
        elsewhere = [look for look in kinds if look != self.given] or [self.given]
        for where, kind in zip(cycle(elsewhere), KINDS, strict=False):
            kinds[where].append(kind)
        kinds[self.given].insert(0, GIVEN_VALUES)
        return trace, [(where, tuple(each or [LIKE])) for where, each in kinds.items()]
