"""Values that no step computes: inputs, constants, sizes, and the second result of another node."""

from dataclasses import dataclass

from torch import Tensor

from leanconv.engine.fused.ir.graph import Node, Op
from leanconv.engine.fused.ir.kinds.call import Call


@dataclass(frozen=True)
class Input(Op):
    """An argument of the call. `index`: its place among the tensors."""

    index: int
    is_step = False


@dataclass(frozen=True, repr=False)
class Constant(Op):
    """A tensor that no call changes."""

    value: Tensor
    is_step, in_float32 = False, True

    def __repr__(self) -> str:
        return "Constant"


@dataclass(frozen=True)
class Length:
    """The length of an axis of one of the graph's inputs."""

    tensor: int
    axis: int


@dataclass(frozen=True)
class Size(Op):
    """A number that the program computes from the lengths of its inputs. `value`: its value in the captured call."""

    value: int | float
    how: Length | Call
    is_step = False


@dataclass(frozen=True)
class AverageOf(Op):
    """The average over height and width of its input, which that node writes beside the map: `N C 1 1`."""

    is_step, in_float32 = False, True


def constant(value: Tensor, name: str = "") -> Node:
    return Node(Constant(value), [], tuple(value.shape), value.dtype, name)
