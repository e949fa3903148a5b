"""The implementations of each kind of node: the autotuner (autotune.py) times them, the fastest one runs.

An implementation is built for one node and is a function of the node's inputs. Maps are channels_last; a caller or an
operator of PyTorch may give others, which the function converts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.engine.fused.ir.activations import IN_PLACE, activate
from leanconv.engine.fused.ir.graph import Node, Op, Run, TorchOp
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.call import Call, Ref
from leanconv.engine.fused.ir.kinds.data_movement import Cat, Pad, Shuffle, Slice
from leanconv.engine.fused.ir.kinds.elementwise import Activation, Add, Affine, Cast, Scale
from leanconv.engine.fused.ir.kinds.gated_sum import GatedSum
from leanconv.engine.fused.ir.kinds.integer import Dequantize, Integer, Quantize
from leanconv.engine.fused.ir.kinds.linear import Linear
from leanconv.engine.fused.ir.kinds.max_pool import MaxPool
from leanconv.engine.fused.ir.kinds.reductions import Average, Sum
from leanconv.engine.fused.ir.kinds.upsample import Upsample
from leanconv.engine.fused.ir.stages import Stage
from leanconv.engine.fused.lowering.kernels import kernel, merged, split, split_on_tiles, tiles
from leanconv.engine.fused.lowering.normalization import AROUND_A_PIVOT
from leanconv.engine.fused.lowering.unfused import aten_stage, in_float32, onednn_stage, stage_by_stage
from leanconv.kernels import Target
from leanconv.measure.hardware.number_types import slow_type

LAST = torch.channels_last
# Operators that multiply: the start of their names.
PRODUCTS = ("conv", "linear", "addmm", "baddbmm", "mm", "bmm", "matmul", "_scaled_dot_product", "scaled_dot_product")


@dataclass(frozen=True)
class Implementation:
    """`make(node)` gives the function, or None where the implementation does not cover the node.

    `of_target`: it depends on the target, `make(node, target=...)`; None is this machine. `splits`: it makes two steps.
    """

    name: str
    make: Callable[..., Run | None]
    of_target: bool = False
    splits: bool = False

    def on(self, target: Target | None) -> "Implementation":
        """The implementation for a target."""
        return replace(self, make=partial(self.make, target=target), of_target=False) if self.of_target else self


def _in_torch(node: Node) -> Run:
    op: TorchOp = node.op  # type: ignore[assignment]
    if isinstance(op, Linear | GatedSum):
        return in_float32(lambda dtype: op.in_torch(replace(node, dtype=dtype)), node.dtype)  # type: ignore[return-value]
    return op.in_torch(node)


def _pointwise_matrix(node: Node) -> Run | None:
    """1×1 on maps of one pixel as a small matrix product, which spares a convolution's preparations."""
    block: Block = node.op  # type: ignore[assignment]
    stage = block.stages[0]
    if not block.is_bare(act=True) or not isinstance(stage, Stage) or not stage.pointwise:
        return None
    if node.shape[2:] != (1, 1) or block.concat > 1 or block.average:
        return None
    weight = stage.weight[:, :, 0, 0].to(node.dtype).contiguous()
    bias = None if stage.bias is None else stage.bias.to(node.dtype)
    act = IN_PLACE.get(stage.act) or partial(activate, act=stage.act)

    def run(x: Tensor) -> Tensor:
        if x.shape[2:] != (1, 1):
            raise ValueError("this implementation is for maps of one pixel")
        return act(F.linear(x.flatten(1), weight, bias))[:, :, None, None]

    return run


def _kernel_then_onednn(node: Node, target: Target | None = None) -> Run | None:
    """Stencils in a kernel, the product in oneDNN: for matrix units (AMX), which Halide does not use."""
    if node.dtype != torch.bfloat16 or not (target or Target()).cpu.amx:
        return None
    return split(node, lambda tail: stage_by_stage(tail, onednn_stage), target)


def _call(node: Node) -> Run:
    """The operator itself; in bfloat16 its result is rounded where it is wider."""
    op: Call = node.op  # type: ignore[assignment]
    call = replace(op, target=AROUND_A_PIVOT.get(op.target, op.target))
    half = node.dtype.itemsize == 2 and node.dtype.is_floating_point
    if call.args == tuple(map(Ref, range(len(node.inputs)))) and not call.kwargs and not half:
        return call.target

    multiplies = getattr(op.target, "__name__", "").startswith(PRODUCTS)
    wide = node.dtype if multiplies and slow_type(node.dtype) else None

    def run(*inputs: Any) -> Any:
        made = call(*(x.float() if wide and isinstance(x, Tensor) and x.dtype == wide else x for x in inputs))
        return made.to(node.dtype) if half and isinstance(made, Tensor) and made.dtype == torch.float32 else made

    return run


IN_TORCH = Implementation("aten", _in_torch)
KERNEL = Implementation("kernel", kernel, of_target=True)
MERGED = Implementation("merged", merged, of_target=True)
TILES = Implementation("tiles", tiles, of_target=True)
ONE_KERNEL = (KERNEL.name, MERGED.name, TILES.name)
IMPLEMENTATIONS: dict[type[Op], list[Implementation]] = {
    Block: [
        Implementation("onednn", lambda node: stage_by_stage(node, onednn_stage)),
        Implementation("aten", lambda node: stage_by_stage(node, aten_stage)),
        Implementation("matrix", _pointwise_matrix),
        KERNEL,
        MERGED,
        TILES,
        Implementation("split", lambda node, target=None: split(node, target=target), of_target=True, splits=True),
        Implementation("tiles+tiles", split_on_tiles, of_target=True, splits=True),
        Implementation("kernel+onednn", _kernel_then_onednn, of_target=True, splits=True),
    ],
    Call: [Implementation("aten", _call)],
    **{kind: [IN_TORCH, KERNEL, TILES] for kind in (GatedSum, Upsample)},
    Integer: [IN_TORCH, KERNEL, MERGED, TILES],
    **{kind: [IN_TORCH, KERNEL] for kind in (Add, MaxPool, Quantize, Dequantize)},
    **{kind: [IN_TORCH] for kind in (Activation, Affine, Average, Cast, Cat, Linear, Pad, Scale, Shuffle, Slice, Sum)},
}


def plain_implementation(node: Node) -> Any:
    """A node as PyTorch runs it."""
    return next(each for each in IMPLEMENTATIONS[type(node.op)] if each.name == "aten").make(node)
